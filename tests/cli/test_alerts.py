"""`headwater alerts` and `headwater webhook`."""

import json

from headwater.metering.v1 import metering_pb2, webhooks_pb2

from services.cli.errors import Exit
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script


def told(number: int) -> metering_pb2.WatchAlertsResponse:
    """One alert."""
    alert = metering_pb2.Alert(
        tenant_id="acme",
        kind=metering_pb2.ALERT_KIND_COST_SPIKE,
        severity=metering_pb2.ALERT_SEVERITY_WARNING,
        message=f"[Look] \x1b[31m{number}",
    )
    return metering_pb2.WatchAlertsResponse(alert=alert, sequence=number)


async def test_watch_prints_a_line_for_each(headwater: Headwater, script: Script) -> None:
    """What an alert says reaches the terminal clean; a program gets one JSON document a line, with its place."""
    script.answers["WatchAlerts"] = lambda request: [told(1), told(2)]
    ended = await headwater("alerts", "watch", "--from-start", "--kind", "cost_spike")
    (sent,) = script.sent("WatchAlerts")
    assert (sent.from_start, sent.until_now, list(sent.kinds)) == (True, False, [metering_pb2.ALERT_KIND_COST_SPIKE])
    assert [line.split()[-5:-2] for line in ended.out.splitlines()] == [["warning", "cost_spike", "acme"]] * 2
    assert "\x1b" not in ended.out
    lines = (await headwater("alerts", "watch", "--json")).out.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2]


async def test_list_shows_the_newest(headwater: Headwater, script: Script) -> None:
    """And asks for no more than what is kept."""
    script.answers["WatchAlerts"] = lambda request: [told(n) for n in range(1, 6)]
    ended = await headwater("alerts", "list", "--limit", "2", "--json")
    assert [each["sequence"] for each in ended.json] == [4, 5]
    assert script.sent("WatchAlerts")[0].until_now


async def test_an_unknown_kind_is_a_usage_error(headwater: Headwater, script: Script) -> None:
    """With those there are."""
    ended = await headwater("alerts", "list", "--kind", "spikes")
    assert ended.code == Exit.USAGE
    assert "cost_spike" in ended.err


async def test_a_webhooks_secret_is_shown_when_it_is_set(headwater: Headwater, script: Script) -> None:
    """On a line of its own."""
    webhook = webhooks_pb2.Webhook(webhook_id="w1", tenant_id="acme", url="https://x.example")
    script.answers["SetWebhook"] = lambda request: webhooks_pb2.SetWebhookResponse(webhook=webhook, secret="whsec_abc")
    ended = await headwater("webhook", "set", "https://x.example", "--of", "acme")
    assert script.sent("SetWebhook")[0].tenant_id == "acme"
    assert "whsec_abc" in ended.out.splitlines()


async def test_a_webhook_that_fails_its_test_ends_the_command_so(headwater: Headwater, script: Script) -> None:
    """With what came back."""
    failed = webhooks_pb2.TestWebhookResponse(http_status=500, reason="it answered HTTP 500")
    script.answers["TestWebhook"] = lambda request: failed
    ended = await headwater("webhook", "test", "w1")
    assert ended.code == Exit.FAILED
    assert "HTTP 500" in ended.err


async def test_webhooks_are_listed_with_their_state(headwater: Headwater, script: Script) -> None:
    """Whether anything is still sent, and how much waits; one is deleted by its id."""
    gone = webhooks_pb2.Webhook(webhook_id="w1", url="https://x.example", waiting=3, disabled_reason="HTTP 410")
    script.answers["ListWebhooks"] = lambda request: webhooks_pb2.ListWebhooksResponse(webhooks=[gone])
    script.answers["DeleteWebhook"] = lambda request: webhooks_pb2.DeleteWebhookResponse()
    row = (await headwater("webhook", "list")).out.splitlines()[-1].split()
    assert row == ["w1", "all", "https://x.example", "all", "3", "disabled:", "HTTP", "410"]
    assert (await headwater("webhook", "delete", "w1")).out == "Deleted webhook w1.\n"
