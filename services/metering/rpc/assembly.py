"""MeteringService, put together from its subjects."""

import asyncio

from services.metering.alerts.watching import AlertWatch
from services.metering.audit.audit import Audit
from services.metering.budgets import Budgets
from services.metering.reports.costs import Costs
from services.metering.reports.forecasts import Forecasts
from services.metering.reports.sql import SqlRunner
from services.metering.rpc.alerts import AlertRpc
from services.metering.rpc.audit import AuditRpc
from services.metering.rpc.budgets import BudgetRpc
from services.metering.rpc.costs import CostRpc
from services.metering.rpc.forecasts import ForecastRpc


class MeteringRpc(CostRpc, BudgetRpc, ForecastRpc, AlertRpc, AuditRpc):
    """All calls of MeteringService."""

    def __init__(
        self,
        costs: Costs,
        run_sql: SqlRunner,
        budgets: Budgets,
        forecasts: Forecasts,
        alerts: AlertWatch,
        stopping: asyncio.Event,
        audit: Audit,
    ) -> None:
        """`stopping` is set when the server stops."""
        CostRpc.__init__(self, costs, run_sql)
        BudgetRpc.__init__(self, budgets)
        ForecastRpc.__init__(self, forecasts)
        AlertRpc.__init__(self, alerts, stopping)
        AuditRpc.__init__(self, audit)
