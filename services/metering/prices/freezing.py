"""Freezing: the charges of a month are kept by day when it is closed, so that its export never changes."""

from datetime import date
from typing import Final

from services.contracts.failures import Busy
from services.metering.clickhouse import Connection

_GROUP: Final = "booked_on, day, adjustment, tenant_id, service, feature, stage, provider, model, estimated"
_SUMS: Final = (
    "calls",
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_usd",
    "charged_usd",
)
# What a closing that was killed has kept comes in with nothing in it: a group that is gone by now gets a row of zeros.
_FREEZE: Final = f"""
INSERT INTO headwater.closed_charges
SELECT
    toDate({{month:Date}}), {_GROUP},
    {", ".join(f"sum(kept_{name})" for name in _SUMS)},
    (SELECT max(version) + 1 FROM headwater.closed_charges)
FROM
(
    SELECT {_GROUP}, {", ".join(f"{name} AS kept_{name}" for name in _SUMS)}
    FROM headwater.billed_charges
    WHERE month = {{month:Date}}
    UNION ALL
    SELECT {_GROUP}, {", ".join("0" for _ in _SUMS)}
    FROM headwater.closed_charges FINAL
    WHERE month = {{month:Date}}
)
GROUP BY {_GROUP}
"""  # noqa: S608 - put together from constants
_FROZEN: Final = """
SELECT sum(calls), sum(cost_usd), sum(charged_usd) FROM headwater.closed_charges FINAL
WHERE month = {month:Date}
"""
_STATEMENTS: Final = """
SELECT sum(calls + corrected_calls), sum(cost_usd + corrected_cost_usd), sum(charged_usd + corrected_charged_usd)
FROM headwater.closed_months FINAL
WHERE month = {month:Date}
"""


async def freeze_charges(writer: Connection, month: date) -> None:
    """Keeps the charges of the month that begins on `month`, whose statements are frozen already.

    Raises:
        Busy: something came between the two, or the sums by day are behind; or ClickHouse is away.
    """
    await writer.command(_FREEZE, {"month": month})
    if await writer.rows(_FROZEN, {"month": month}) != await writer.rows(_STATEMENTS, {"month": month}):
        raise Busy("ROLLUP_BEHIND", f"the sums of {month:%Y-%m} are being made: close it in a moment")
