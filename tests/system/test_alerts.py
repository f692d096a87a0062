"""Alerts through the whole platform."""

import grpc
from headwater.inference.v1 import inference_pb2
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceStub
from headwater.metering.v1 import metering_pb2
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceStub

from tests.system.conftest import Platform, put_and_wait


async def test_a_budgets_own_thresholds_are_watched_as_they_are_reached(
    platform: Platform, channel: grpc.aio.Channel
) -> None:
    """Other percents than the usual ones, set over RPC, reached by a question, heard by the tenant's own key alone."""
    key, stranger = platform.tenant("alerts-acme"), platform.tenant("alerts-globex")
    await put_and_wait(channel, key, "leave.md", b"# Leave\n\nEvery employee has 31 days of paid leave a year.\n")
    budget = metering_pb2.SetBudgetRequest(
        name=metering_pb2.BudgetName(tenant_id="alerts-acme", period=metering_pb2.BUDGET_PERIOD_DAY),
        cap_usd="10",
        thresholds=[33, 66],
        spent_so_far_usd="3.299999999999",
    )
    metering = MeteringServiceStub(channel)
    await metering.SetBudget(budget, metadata=platform.admin, timeout=10)
    watch = metering.WatchAlerts(metering_pb2.WatchAlertsRequest(), metadata=key, timeout=30)
    await watch.initial_metadata()
    question = inference_pb2.GenerateRequest(question="How many days of paid leave are there a year?")
    await InferenceServiceStub(channel).Generate(question, metadata=key, timeout=30)
    told = await watch.read()
    assert isinstance(told, metering_pb2.WatchAlertsResponse)
    watch.cancel()
    assert (told.alert.kind, told.alert.facts["percent"]) == (metering_pb2.ALERT_KIND_BUDGET_THRESHOLD, "33")
    kept = metering_pb2.WatchAlertsRequest(from_start=True, until_now=True)
    assert [each.alert.alert_id async for each in metering.WatchAlerts(kept, metadata=key, timeout=10)] == [
        told.alert.alert_id
    ]
    assert [each async for each in metering.WatchAlerts(kept, metadata=stranger, timeout=10)] == []
