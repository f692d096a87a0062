"""Webhooks whole: a real bus, a real gRPC server, a real receiver."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import nats
import pytest
from headwater.metering.v1 import metering_pb2
from headwater.metering.v1 import webhooks_pb2 as pb
from headwater.metering.v1.webhooks_pb2_grpc import WebhookServiceStub, add_WebhookServiceServicer_to_server

from services.contracts.events import AlertKind, AlertRaised
from services.contracts.failures import Conflict, Exhausted, Missing, Rejected
from services.contracts.streams import (
    ALERTS_STREAM,
    DEAD_LETTERS_STREAM,
    KEYS_BUCKET,
    TENANTS_BUCKET,
    WEBHOOKS_BUCKET,
)
from services.contracts.tenants import TenantId
from services.metering.alerts.alert import PLATFORM, alert
from services.metering.alerts.webhook_calls import WebhookCalls, webhook_calls
from services.metering.alerts.webhook_delivery import RETRY_CEILINGS, WebhookDelivery, retry_delay
from services.metering.alerts.webhooks import MAX_WEBHOOKS, WebhookRecord, Webhooks
from services.metering.rpc.webhooks import WebhookRpc
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore
from services.runtime.inspecting import inspecting
from services.runtime.mirror import Mirror
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings
from tests.metering.alerts.receiver import Receiver, receiving

ACME = TenantId("acme")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """On loopback."""
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def calls() -> AsyncIterator[WebhookCalls]:
    """Impatient, and free to call this machine."""
    async with webhook_calls(private_networks=True, time_limit=timedelta(seconds=1)) as calls:
        yield calls


@pytest.fixture
async def webhooks(bus: Bus) -> Webhooks:
    """None yet; tenant acme exists."""
    tenants = await bus.bucket(TENANTS_BUCKET)
    await tenants.put("acme", b"{}")
    return Webhooks(await bus.bucket(WEBHOOKS_BUCKET), tenants, bus)


@asynccontextmanager
async def delivering(
    bus: Bus, webhooks: Webhooks, calls: WebhookCalls, share: float = 0.01
) -> AsyncIterator[WebhookDelivery]:
    """A worker that waits `share` of a retry's ceiling."""
    records = Mirror(await bus.bucket(WEBHOOKS_BUCKET), WebhookRecord.model_validate_json)
    delivery = WebhookDelivery(bus, webhooks, records, calls, jitter=lambda: share)
    async with delivery.running():
        yield delivery


async def tell(bus: Bus, tenant: TenantId, about: str = "x", kind: AlertKind = "cost_spike") -> None:
    """An alert about something."""
    told = alert(kind, tenant, severity="warning", about=about, period="20261121", message="Look.", facts={})
    await bus.publish("metering", told)


async def dead_letters(bus: Bus, count: int) -> list[str]:
    """The reasons, once there are `count`."""
    while len(letters := await bus.browse(DEAD_LETTERS_STREAM, ">", before=None, limit=10)) < count:
        await asyncio.sleep(0.02)
    return [letter.headers["Headwater-Reason"] for letter in letters]


async def test_an_alert_goes_to_each_webhook_that_wants_it(
    bus: Bus, webhooks: Webhooks, calls: WebhookCalls, receiver: Receiver
) -> None:
    """Signed with its own secret; a tenant's webhook gets the tenant's alone, one with kinds those alone."""
    mine = await webhooks.set(ACME, receiver.url + "/mine", [])
    everything = await webhooks.set(None, receiver.url + "/all", [])
    await webhooks.set(None, receiver.url + "/drifts", ["cost_drift"])
    async with delivering(bus, webhooks, calls):
        for tenant in (ACME, TenantId("globex"), PLATFORM):
            await tell(bus, tenant)
        await tell(bus, ACME, kind="cost_drift")
        got = await receiver.until("/all", 4)
        assert [each.data["tenant_id"] for each in await receiver.until("/mine", 2)] == ["acme", "acme"]
        assert [each.data["kind"] for each in await receiver.until("/drifts", 1)] == ["cost_drift"]
    assert {each.data["tenant_id"] for each in got} == {"acme", "globex", ""}
    assert all(each.is_signed_with(everything.secret.get_secret_value()) for each in got)
    assert not got[0].is_signed_with(mine.secret.get_secret_value())
    assert got[0].message_id == got[0].data["alert_id"]


async def test_a_webhook_that_is_dead_holds_up_no_other(
    bus: Bus, webhooks: Webhooks, calls: WebhookCalls, receiver: Receiver
) -> None:
    """One hangs on every call; the other gets all."""
    receiver.statuses["/dead"] = [0] * 100
    await webhooks.set(None, receiver.url + "/dead", [])
    await webhooks.set(None, receiver.url + "/alive", [])
    async with delivering(bus, webhooks, calls):
        for number in range(20):
            await tell(bus, ACME, str(number))
        assert len(await receiver.until("/alive", 20)) == 20


async def test_what_is_not_taken_is_tried_again_across_a_restart(
    bus: Bus, webhooks: Webhooks, calls: WebhookCalls, receiver: Receiver
) -> None:
    """Under the same id, and only where it was not taken."""
    receiver.statuses["/late"] = [500]
    await webhooks.set(None, receiver.url + "/late", [])
    await webhooks.set(None, receiver.url + "/prompt", [])
    await tell(bus, ACME)
    async with delivering(bus, webhooks, calls, share=0.1):
        await receiver.until("/late", 1)
        await receiver.until("/prompt", 1)
    async with delivering(bus, webhooks, calls):
        first, second = await receiver.until("/late", 2)
    assert first.message_id == second.message_id
    assert len(receiver.got["/prompt"]) == 1


async def test_a_killed_worker_loses_no_alert(nats_url: str, bus: Bus, webhooks: Webhooks, receiver: Receiver) -> None:
    """Killed again and again between the receiver's 204 and its acknowledgement: what comes twice has the same id."""
    await webhooks.set(None, receiver.url + "/x", [])
    for number in range(12):
        await tell(bus, ACME, str(number))
    for count in (1, 3):
        assert await (await worker(nats_url, count)).wait() == -signal.SIGKILL
    last = await worker(nats_url, 0)
    try:
        async with asyncio.timeout(30):
            while (await webhooks.page(None, 0, "")).webhooks[0][1]:
                await asyncio.sleep(0.05)
    finally:
        last.kill()
        await last.wait()
    got = receiver.got["/x"]
    alerts = {(each.message_id, each.data["alert_id"], each.data["about"]) for each in got}
    assert sorted(about for _, _, about in alerts) == sorted(str(number) for number in range(12))
    assert all(message_id == alert_id for message_id, alert_id, _ in alerts)
    assert len(got) >= 12 + 2


async def worker(nats_url: str, count: int) -> asyncio.subprocess.Process:
    """One that dies after `count` calls."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.metering.alerts.dying", nats_url, str(count)
    )


async def test_two_workers_deliver_once(bus: Bus, webhooks: Webhooks, calls: WebhookCalls, receiver: Receiver) -> None:
    """They share each webhook's consumer."""
    await webhooks.set(None, receiver.url + "/x", [])
    async with delivering(bus, webhooks, calls), delivering(bus, webhooks, calls):
        for number in range(20):
            await tell(bus, ACME, str(number))
        got = await receiver.until("/x", 20)
    assert len({each.message_id for each in got}) == len(got) == 20


async def test_a_webhook_that_is_gone_is_disabled(
    bus: Bus, webhooks: Webhooks, calls: WebhookCalls, receiver: Receiver
) -> None:
    """The alert is kept as a dead letter with the reason, and later ones are not sent."""
    receiver.statuses["/gone"] = [410]
    record = await webhooks.set(None, receiver.url + "/gone", [])
    async with delivering(bus, webhooks, calls):
        await tell(bus, ACME)
        (reason,) = await dead_letters(bus, 1)
        while not (await webhooks.get(record.webhook_id)).disabled_reason:
            await asyncio.sleep(0.02)
        await tell(bus, ACME, "later")
        page = await webhooks.page(None, 0, "")
    assert "HTTP 410" in reason
    assert [(each.disabled_reason, waiting) for each, waiting in page.webhooks] == [("it answered HTTP 410", 0)]
    assert len(receiver.got["/gone"]) == 1


async def test_a_malformed_event_is_one_dead_letter(
    nats_url: str, bus: Bus, webhooks: Webhooks, calls: WebhookCalls, receiver: Receiver
) -> None:
    """The inspector's; webhooks, however many, pass over what cannot be read."""
    for path in ("/x", "/y"):
        await webhooks.set(None, receiver.url + path, [])
    client = await nats.connect(nats_url)
    await client.jetstream().publish(AlertRaised.subject("metering", ACME), b"{}")
    await client.close()
    await tell(bus, ACME)
    async with inspecting(bus, "metering", ALERTS_STREAM, AlertRaised), delivering(bus, webhooks, calls):
        for path in ("/x", "/y"):
            await receiver.until(path, 1)
        while any(waiting for _, waiting in (await webhooks.page(None, 0, "")).webhooks):
            await asyncio.sleep(0.02)
        (reason,) = await dead_letters(bus, 1)
    assert reason.startswith("MALFORMED_EVENT: not a alert_raised event")


def test_retries_take_about_a_day() -> None:
    """On average, as each waits a random share; then the alert is given up."""
    delays = [retry_delay(tried, 0.5) for tried in range(1, len(RETRY_CEILINGS) + 1)]
    assert timedelta(hours=20) < sum((delay for delay in delays if delay), timedelta()) < timedelta(hours=28)
    assert retry_delay(len(RETRY_CEILINGS) + 1, 0.5) is None


async def test_what_was_never_taken_is_a_dead_letter(
    bus: Bus, webhooks: Webhooks, calls: WebhookCalls, receiver: Receiver
) -> None:
    """With the reason, after the last try."""
    receiver.statuses["/x"] = [500]
    record = await webhooks.set(None, receiver.url + "/x", [])
    await tell(bus, ACME)
    puller = await bus.puller(
        ALERTS_STREAM, record.durable, subject=">", ack_wait=timedelta(seconds=30), max_ack_pending=10
    )
    (delivery,) = await puller.fetch(1, timedelta(seconds=5))
    delivery.deliveries = len(RETRY_CEILINGS) + 1
    records = Mirror(await bus.bucket(WEBHOOKS_BUCKET), WebhookRecord.model_validate_json)
    await WebhookDelivery(bus, webhooks, records, calls).deliver(record, delivery)
    assert await dead_letters(bus, 1) == [
        f"WEBHOOK_NOT_DELIVERED: webhook {record.webhook_id} did not take it: it answered HTTP 500"
    ]


async def test_webhooks_are_for_tenants_that_exist_and_set_once(bus: Bus, webhooks: Webhooks) -> None:
    """And there is an end to how many."""
    record = await webhooks.set(ACME, "https://hooks.example.com/x", [])
    with pytest.raises(Missing):
        await webhooks.set(TenantId("nobody"), "https://hooks.example.com/x", [])
    with pytest.raises(Conflict):
        await webhooks.set(ACME, "https://hooks.example.com/x", ["cost_spike"])
    bucket = await bus.bucket(WEBHOOKS_BUCKET)
    for number in range(1, MAX_WEBHOOKS):
        await bucket.put(f"w{number}", record.model_dump_json().encode())
    with pytest.raises(Exhausted):
        await webhooks.set(None, "https://hooks.example.com/y", [])


async def test_a_webhook_is_set_tested_listed_and_deleted_over_rpc(
    bus: Bus, webhooks: Webhooks, calls: WebhookCalls, receiver: Receiver
) -> None:
    """Its secret is shown once, and no tenant's key may do any of it."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    server = RpcServer(RpcSettings(address="127.0.0.1:0"), keys)
    address = server.listen()
    server.add(add_WebhookServiceServicer_to_server, WebhookRpc(webhooks, calls))
    _, admin_key = await keys.issue(None, frozenset({"SCOPE_ADMIN"}), "test")
    _, tenant_key = await keys.issue(ACME, frozenset({"SCOPE_COSTS_READ"}), "test")
    admin, tenant = (
        {"metadata": (("authorization", f"Bearer {key}"),), "timeout": 10} for key in (admin_key, tenant_key)
    )
    async with server.serving(timedelta(seconds=1)), grpc.aio.insecure_channel(address) as channel:
        rpc: Any = WebhookServiceStub(channel)
        asked = pb.SetWebhookRequest(
            tenant_id="acme", url=receiver.url + "/x", kinds=[metering_pb2.ALERT_KIND_COST_SPIKE]
        )
        made = await rpc.SetWebhook(asked, **admin)
        test = await rpc.TestWebhook(pb.TestWebhookRequest(webhook_id=made.webhook.webhook_id), **admin)
        assert (test.delivered, test.http_status) == (True, 204)
        assert receiver.got["/x"][0].is_signed_with(made.secret)
        listed = await rpc.ListWebhooks(pb.ListWebhooksRequest(), **admin)
        assert list(listed.webhooks) == [made.webhook]
        assert made.secret not in str(listed)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rpc.ListWebhooks(pb.ListWebhooksRequest(), **tenant)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await rpc.DeleteWebhook(pb.DeleteWebhookRequest(webhook_id=made.webhook.webhook_id), **admin)
        assert not (await rpc.ListWebhooks(pb.ListWebhooksRequest(), **admin)).webhooks


async def test_webhooks_are_listed_in_pages(webhooks: Webhooks) -> None:
    """Following page tokens lists each once; a token that no page gave is refused."""
    records = [await webhooks.set(None, f"https://hooks.example.com/{path}", []) for path in "abc"]
    first = await webhooks.page(None, 2, "")
    rest = await webhooks.page(None, 2, first.next_page_token)
    assert {record.webhook_id for record, _ in first.webhooks + rest.webhooks} == {one.webhook_id for one in records}
    assert (len(first.webhooks), len(rest.webhooks), rest.next_page_token) == (2, 1, "")
    with pytest.raises(Rejected, match="next_page_token"):
        await webhooks.page(None, 0, "x")


async def test_a_damaged_webhook_is_left_out_of_the_list(bus: Bus, webhooks: Webhooks) -> None:
    """Others are listed and can be set."""
    await (await bus.bucket(WEBHOOKS_BUCKET)).put("00junk", b"{junk")
    record = await webhooks.set(None, "https://hooks.example/a", [])
    assert [listed.webhook_id for listed, _ in (await webhooks.page(None, 0, "")).webhooks] == [record.webhook_id]
