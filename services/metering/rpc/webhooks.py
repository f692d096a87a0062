"""Calls about webhooks."""

from datetime import UTC, datetime
from uuid import uuid4

from headwater.metering.v1 import webhooks_pb2 as pb
from headwater.metering.v1.webhooks_pb2_grpc import WebhookServiceServicer

from services.contracts.tenants import tenant_id
from services.metering.alerts.webhook_calls import WebhookCalls, check_url, test_body
from services.metering.alerts.webhooks import WebhookRecord, Webhooks
from services.metering.rpc.alerts import KINDS, kinds_of
from services.metering.rpc.translation import Context, stamp_of


class WebhookRpc(WebhookServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, webhooks: Webhooks, calls: WebhookCalls) -> None:
        self._webhooks = webhooks
        self._calls = calls

    async def SetWebhook(self, request: pb.SetWebhookRequest, context: Context) -> pb.SetWebhookResponse:
        """Sets a webhook."""
        check_url(request.url, private_networks=self._calls.private_networks)
        tenant = tenant_id(request.tenant_id) if request.tenant_id else None
        record = await self._webhooks.set(tenant, request.url, sorted(kinds_of(request.kinds)))
        return pb.SetWebhookResponse(webhook=_webhook(record, 0), secret=record.secret.get_secret_value())

    async def ListWebhooks(self, request: pb.ListWebhooksRequest, context: Context) -> pb.ListWebhooksResponse:
        """Lists webhooks."""
        tenant = tenant_id(request.tenant_id) if request.tenant_id else None
        page = await self._webhooks.page(tenant, request.page_size, request.page_token)
        return pb.ListWebhooksResponse(
            webhooks=[_webhook(record, waiting) for record, waiting in page.webhooks],
            next_page_token=page.next_page_token,
        )

    async def DeleteWebhook(self, request: pb.DeleteWebhookRequest, context: Context) -> pb.DeleteWebhookResponse:
        """Removes a webhook."""
        await self._webhooks.delete(request.webhook_id)
        return pb.DeleteWebhookResponse()

    async def TestWebhook(self, request: pb.TestWebhookRequest, context: Context) -> pb.TestWebhookResponse:
        """Sends a test alert."""
        record = await self._webhooks.get(request.webhook_id)
        outcome = await self._calls.post(record, str(uuid4()), test_body(record, datetime.now(UTC)))
        return pb.TestWebhookResponse(
            delivered=outcome.delivered,
            http_status=outcome.http_status,
            reason=outcome.reason,
            latency_ms=outcome.latency_ms,
        )


def _webhook(record: WebhookRecord, waiting: int) -> pb.Webhook:
    return pb.Webhook(
        webhook_id=record.webhook_id,
        tenant_id=record.tenant or "",
        url=record.url,
        kinds=[KINDS[kind] for kind in record.kinds],
        created_at=stamp_of(record.created_at),
        waiting=waiting,
        disabled_reason=record.disabled_reason,
    )
