"""`headwater alerts` and `headwater webhook`: what somebody should look at, and where it is sent."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any

import typer
from headwater.metering.v1 import metering_pb2, webhooks_pb2
from rich.text import Text

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import as_json, enum_word, local_time, one_line, plain, print_json, stdout, table

app = typer.Typer(help="Watch and list alerts about budgets, costs, prices and usage.", rich_markup_mode="rich")
webhook_app = typer.Typer(help="Send alerts to other systems, signed.", rich_markup_mode="rich")
TIMEOUT = timedelta(seconds=15)
WATCH = timedelta(minutes=30)
MOST_LISTED = 1000
_STYLES = {"critical": "bold red", "warning": "yellow", "info": ""}
_KINDS = {
    enum_word(metering_pb2.AlertKind.DESCRIPTOR, number): number for number in metering_pb2.AlertKind.values() if number
}

Kinds = Annotated[list[str], typer.Option("--kind", help=f"Only this kind; may be repeated: {', '.join(_KINDS)}.")]
WebhookId = Annotated[str, typer.Argument(help="Its id, as `headwater webhook list` shows it.", metavar="WEBHOOK")]


@client_command(app, "watch", role="either", timeout=WATCH, example="headwater alerts watch --kind cost_spike")
async def watch(
    session: Session,
    kind: Kinds = [],  # noqa: B006 - never changed; Typer reads it
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the first that is kept.")] = False,
    after: Annotated[int, typer.Option(help="Begin after this place, as --json shows it.", min=0)] = 0,
) -> Exit | None:
    """Print alerts as they are raised: the tenant's own, or everyone's with an admin key."""
    request = metering_pb2.WatchAlertsRequest(kinds=_kinds(kind), from_start=from_start, after_sequence=after)
    async for response in _alerts(session, request):
        if session.json:
            print_json(as_json(response), indent=None)
        else:
            stdout().print(_line(response.alert))
    return None


@client_command(app, "list", role="either", timeout=TIMEOUT, example="headwater alerts list --json")
async def list_alerts(
    session: Session,
    kind: Kinds = [],  # noqa: B006 - never changed; Typer reads it
    limit: Annotated[int, typer.Option(help="Most to list, the newest.", min=1, max=MOST_LISTED)] = 50,
) -> Exit | None:
    """List the newest alerts that are kept, oldest first."""
    request = metering_pb2.WatchAlertsRequest(kinds=_kinds(kind), from_start=True, until_now=True)
    kept: list[Any] = []
    async for response in _alerts(session, request):
        kept = [*kept[-limit + 1 :], response] if limit > 1 else [response]
    if session.json:
        print_json([as_json(response) for response in kept])
        return None
    if not kept:
        stdout().print("No alerts.")
    for response in kept:
        stdout().print(_line(response.alert))
    return None


@client_command(
    webhook_app,
    "set",
    role="admin",
    timeout=TIMEOUT,
    example="headwater webhook set https://hooks.example.com/costs --kind cost_spike",
)
async def set_webhook(
    session: Session,
    url: Annotated[str, typer.Argument(help="Where alerts are sent; https.", metavar="URL")],
    of: Annotated[str, typer.Option(help="Only this tenant's; left out, everyone's.", metavar="TENANT")] = "",
    kind: Kinds = [],  # noqa: B006 - never changed; Typer reads it
) -> Exit | None:
    """Send alerts from now on to a URL, and show the secret they are signed with."""
    request = webhooks_pb2.SetWebhookRequest(tenant_id=of, url=url, kinds=_kinds(kind))
    response = await session.connection.webhooks.SetWebhook(request, **session.connection.terms)
    if session.json:
        print_json(as_json(response))
        return None
    out = stdout()
    out.print(f"Alerts go to webhook {one_line(response.webhook.webhook_id)}. Its secret, shown only now:")
    out.print(one_line(response.secret), style="bold", soft_wrap=True)
    out.print(f"Next: headwater webhook test {one_line(response.webhook.webhook_id)}", style="dim")
    return None


@client_command(webhook_app, "list", role="admin", timeout=TIMEOUT, example="headwater webhook list")
async def list_webhooks(session: Session) -> Exit | None:
    """List webhooks, and how many alerts wait for each."""
    webhooks: list[webhooks_pb2.Webhook] = []
    request = webhooks_pb2.ListWebhooksRequest(page_size=100)
    async for page in session.pages(session.connection.webhooks.ListWebhooks, request):
        webhooks.extend(page.webhooks)
    if session.json:
        print_json([as_json(webhook) for webhook in webhooks])
        return None
    if not webhooks:
        stdout().print("No webhooks yet. Set one: headwater webhook set https://hooks.example.com/costs")
        return None
    listing = table("WEBHOOK", "TENANT", "URL", "KINDS", ("WAITING", "right"), "STATE")
    for webhook in webhooks:
        kinds = ", ".join(enum_word(metering_pb2.AlertKind.DESCRIPTOR, number) for number in webhook.kinds)
        state = plain(f"disabled: {webhook.disabled_reason}", "red") if webhook.disabled_reason else Text("in use")
        listing.add_row(
            plain(webhook.webhook_id),
            plain(webhook.tenant_id or "all"),
            plain(webhook.url),
            plain(kinds or "all"),
            str(webhook.waiting),
            state,
        )
    stdout().print(listing)
    return None


@client_command(webhook_app, "delete", role="admin", timeout=TIMEOUT, example="headwater webhook delete 3f2a9c")
async def delete(session: Session, webhook_id: WebhookId) -> Exit | None:
    """Delete a webhook, with what still waits to be sent to it."""
    request = webhooks_pb2.DeleteWebhookRequest(webhook_id=webhook_id)
    await session.connection.webhooks.DeleteWebhook(request, **session.connection.terms)
    stdout().print(f"Deleted webhook {one_line(webhook_id)}.")
    return None


@client_command(
    webhook_app, "test", role="admin", timeout=timedelta(seconds=30), example="headwater webhook test 3f2a9c"
)
async def test(session: Session, webhook_id: WebhookId) -> Exit | None:
    """Send a test alert now and say what came back."""
    request = webhooks_pb2.TestWebhookRequest(webhook_id=webhook_id)
    response = await session.connection.webhooks.TestWebhook(request, **session.connection.terms)
    if session.json:
        print_json(as_json(response))
    elif response.delivered:
        stdout().print(f"Delivered: HTTP {response.http_status} in {response.latency_ms} ms.")
    if not response.delivered and not session.json:
        raise CommandFailed(Exit.FAILED, f"not delivered: {response.reason}")
    return None if response.delivered else Exit.FAILED


async def _alerts(
    session: Session, request: metering_pb2.WatchAlertsRequest
) -> AsyncIterator[metering_pb2.WatchAlertsResponse]:
    async for response in session.connection.metering.WatchAlerts(request, **session.connection.terms):
        yield response


def _kinds(words: list[str]) -> list["metering_pb2.AlertKind.ValueType"]:
    for word in words:
        if word not in _KINDS:
            raise CommandFailed(Exit.USAGE, f"there is no kind {word!r}: choose from {', '.join(_KINDS)}")
    return [_KINDS[word] for word in words]


def _line(alert: metering_pb2.Alert) -> Text:
    severity = enum_word(metering_pb2.AlertSeverity.DESCRIPTOR, alert.severity)
    kind = enum_word(metering_pb2.AlertKind.DESCRIPTOR, alert.kind)
    return Text(" ").join(
        (
            Text(local_time(alert.raised_at), style="dim"),
            Text(severity, style=_STYLES.get(severity, "")),
            Text(kind),
            plain(alert.tenant_id or "the platform", "bold"),
            plain(alert.message),
        )
    )
