"""Webhooks: where alerts are sent and what they are signed with."""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, SecretStr, field_serializer

from services.contracts.events import AlertKind, TenantField
from services.contracts.failures import Conflict, Exhausted, Missing
from services.contracts.streams import ALERTS_STREAM
from services.contracts.tenants import TenantId
from services.runtime.buckets import Bucket
from services.runtime.bus import Bus
from services.runtime.page_tokens import last_key, page_token_after
from services.runtime.records import Records

MAX_WEBHOOKS: Final = 200
"""Each has a consumer of its own."""
DEFAULT_PAGE_SIZE: Final = 100
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with
_SECRET_BYTES: Final = 32


class WebhookRecord(BaseModel):
    """Where alerts are sent. Only `disabled_reason` ever changes."""

    model_config = ConfigDict(frozen=True)

    webhook_id: str
    tenant: TenantField | None
    """Whose alerts; None: everyone's and the platform's own."""
    url: str
    kinds: tuple[AlertKind, ...]
    """Empty: all."""
    secret: SecretStr
    created_at: AwareDatetime
    disabled_reason: str = ""

    @property
    def durable(self) -> str:
        """The consumer that remembers what was delivered to it."""
        return f"webhook-{self.webhook_id}"

    @property
    def subject(self) -> str:
        """What of the stream it hears."""
        return f"*.v1.*.{self.tenant}" if self.tenant else ">"

    def wants(self, kind: AlertKind) -> bool:
        """Whether alerts of this kind are sent to it."""
        return not self.kinds or kind in self.kinds

    @field_serializer("secret", when_used="json")
    def _kept(self, secret: SecretStr) -> str:
        return secret.get_secret_value()


@dataclass(frozen=True)
class WebhookPage:
    """Webhooks by id, each with how many alerts wait for it."""

    webhooks: list[tuple[WebhookRecord, int]]
    next_page_token: str


class Webhooks:
    """All webhooks. Every method raises ``Busy`` when the bus is away."""

    def __init__(self, bucket: Bucket, tenants: Bucket, bus: Bus) -> None:
        self._bucket = bucket
        self._records = Records(bucket, WebhookRecord.model_validate_json)
        self._tenants = tenants
        self._bus = bus

    async def set(self, tenant: TenantId | None, url: str, kinds: Sequence[AlertKind]) -> WebhookRecord:
        """Sends alerts told from now on to `url`, which has been checked.

        Raises:
            Missing: there is no such tenant.
            Conflict: they are sent there already.
            Exhausted: there are as many webhooks as may be.
        """
        if tenant is not None and await self._tenants.get(tenant) is None:
            raise Missing("TENANT_UNKNOWN", f"there is no tenant {tenant}: create it first")
        records = [record for _, record in await self._records.listed()]
        if len(records) >= MAX_WEBHOOKS:
            raise Exhausted("WEBHOOKS_FULL", f"there are {MAX_WEBHOOKS} webhooks: delete one first")
        for record in records:
            if (record.tenant, record.url) == (tenant, url):
                raise Conflict("WEBHOOK_EXISTS", f"webhook {record.webhook_id} is the same: delete it for a new secret")
        record = WebhookRecord(
            webhook_id=secrets.token_hex(8),
            tenant=tenant,
            url=url,
            kinds=tuple(sorted(kinds)),
            secret=SecretStr(SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()),
            created_at=datetime.now(UTC),
        )
        await self._bucket.create(record.webhook_id, record.model_dump_json().encode())
        return record

    async def get(self, webhook_id: str) -> WebhookRecord:
        """One webhook.

        Raises:
            Missing: there is none with this id.
        """
        return (await self._found(webhook_id))[0]

    async def page(self, tenant: TenantId | None, page_size: int, page_token: str) -> WebhookPage:
        """A page of webhooks by id, of one tenant or all; 0 `page_size` means 100.

        Raises:
            Rejected: `page_token` is none of this list.
        """
        size, last = page_size or DEFAULT_PAGE_SIZE, last_key("webhooks", page_token)
        records = [record for key, record in await self._records.listed() if key > last]
        records = [record for record in records if tenant is None or record.tenant == tenant]
        page = [(each, await self._bus.waiting(ALERTS_STREAM, each.durable)) for each in records[:size]]
        return WebhookPage(page, page_token_after("webhooks", page[-1][0].webhook_id) if len(records) > size else "")

    async def delete(self, webhook_id: str) -> None:
        """Removes a webhook with what waits for it.

        Raises:
            Missing: there is none with this id.
            Conflict: somebody else changed it at the same moment.
        """
        record, revision = await self._found(webhook_id)
        await self._bucket.delete(webhook_id, revision)
        await self._bus.forget(ALERTS_STREAM, record.durable)

    async def disable(self, webhook_id: str, reason: str) -> None:
        """Sends nothing to it any more; it stays listed with the reason.

        Raises:
            Missing: it was deleted.
            Conflict: somebody else changed it at the same moment.
        """
        record, revision = await self._found(webhook_id)
        disabled = record.model_copy(update={"disabled_reason": reason})
        await self._bucket.update(webhook_id, disabled.model_dump_json().encode(), revision)
        await self._bus.forget(ALERTS_STREAM, record.durable)

    async def _found(self, webhook_id: str) -> tuple[WebhookRecord, int]:
        found = await self._records.find(webhook_id)
        if found is None:
            raise Missing("WEBHOOK_UNKNOWN", "there is no webhook with this id")
        return found
