"""Tenants and what their keys may do."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from services.contracts.failures import Conflict, Missing, Rejected
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId, tenant_id
from services.runtime.buckets import Bucket
from services.runtime.identity import KeyRecord, KeyStore
from services.runtime.page_tokens import last_key, page_token_after
from services.runtime.records import Records

ADMIN_SCOPE: Final = "SCOPE_ADMIN"
TENANT_SCOPES: Final = frozenset(
    {"SCOPE_DOCUMENTS_WRITE", "SCOPE_DOCUMENTS_READ", "SCOPE_SEARCH", "SCOPE_GENERATE", "SCOPE_COSTS_READ"}
)
DEFAULT_PAGE_SIZE = 100


@dataclass(frozen=True)
class TenantPage:
    """Tenants by id."""

    tenants: list[TenantRecord]
    next_page_token: str


@dataclass(frozen=True)
class KeyPage:
    """Keys, oldest first."""

    keys: list[KeyRecord]
    next_page_token: str


def fitting_scopes(tenant: TenantId | None, asked: Iterable[str]) -> frozenset[str]:
    """The scopes of a new key: those `asked` for, or everything a key of its kind may hold.

    Raises:
        Rejected: a tenant's key is to be an admin's, or the other way round.
    """
    allowed = frozenset({ADMIN_SCOPE}) if tenant is None else TENANT_SCOPES
    scopes = frozenset(asked) or allowed
    if scopes <= allowed:
        return scopes
    if tenant is None:
        raise Rejected("SCOPES_DO_NOT_FIT", "an admin key holds SCOPE_ADMIN alone: name a tenant for the other scopes")
    raise Rejected("SCOPES_DO_NOT_FIT", "a tenant's key cannot hold SCOPE_ADMIN")


class Tenants:
    """The tenants, and keys for them."""

    def __init__(self, bucket: Bucket, keys: KeyStore, plans: Collection[str]) -> None:
        self._bucket = bucket
        self._records = Records(bucket, TenantRecord.model_validate_json)
        self._keys = keys
        self._plans = plans

    async def create(self, tenant: str, display_name: str, plan: str = "") -> TenantRecord:
        """Creates a tenant; an empty `display_name` means its id, an empty `plan` the default one.

        Raises:
            Rejected: this cannot be a tenant's id, or there is no such plan.
            Conflict: there is one with this id.
        """
        self._check_plan(plan)
        record = TenantRecord(
            tenant=tenant_id(tenant), display_name=display_name or tenant, created_at=datetime.now(UTC), plan=plan
        )
        try:
            await self._bucket.create(record.tenant, record.model_dump_json().encode())
        except Conflict as conflict:
            raise Conflict("TENANT_EXISTS", f"there is a tenant {tenant} already") from conflict
        return record

    async def update(self, tenant: str, display_name: str, plan: str) -> TenantRecord:
        """Changes what is not empty.

        Raises:
            Missing: there is no such tenant, or its record cannot be read.
            Rejected: there is no such plan.
            Conflict: somebody else changed it at the same moment.
        """
        self._check_plan(plan)
        key = tenant_id(tenant)
        found = await self._records.find(key)
        if found is None:
            raise _unknown(tenant)
        record, revision = found
        changes = {name: value for name, value in (("display_name", display_name), ("plan", plan)) if value}
        record = record.model_copy(update=changes)
        await self._bucket.update(key, record.model_dump_json().encode(), revision)
        return record

    async def page(self, page_size: int, page_token: str) -> TenantPage:
        """A page of tenants by id; 0 `page_size` means 100.

        Raises:
            Rejected: `page_token` is none of this list.
        """
        size, last = page_size or DEFAULT_PAGE_SIZE, last_key("tenants", page_token)
        listed = [(key, record) for key, record in await self._records.listed() if key > last]
        page = listed[:size]
        return TenantPage(
            tenants=[record for _, record in page],
            next_page_token=page_token_after("tenants", page[-1][0]) if len(listed) > size else "",
        )

    async def issue_key(self, tenant: str, scopes: Iterable[str], description: str) -> tuple[KeyRecord, str]:
        """Makes a key of `tenant`, or an admin key when it is empty; returns its record and the key itself.

        Raises:
            Missing: there is no such tenant.
            Rejected: the scopes do not fit this kind of key.
        """
        owner = await self._known(tenant)
        return await self._keys.issue(owner, fitting_scopes(owner, scopes), description)

    async def revoke_key(self, key_id: str) -> KeyRecord:
        """Ends a key.

        Raises:
            Missing: there is no such key.
        """
        return await self._keys.revoke(key_id)

    async def list_keys(self, tenant: str, page_size: int, page_token: str) -> KeyPage:
        """A page of the keys of `tenant`, or of the admin keys when it is empty; 0 `page_size` means 100.

        Raises:
            Missing: there is no such tenant.
            Rejected: `page_token` is none of this list.
        """
        size, last = page_size or DEFAULT_PAGE_SIZE, last_key("keys", page_token)
        keys = [key for key in await self._keys.list(await self._known(tenant)) if _place(key) > last]
        page = keys[:size]
        return KeyPage(page, page_token_after("keys", _place(page[-1])) if len(keys) > size else "")

    async def _known(self, tenant: str) -> TenantId | None:
        if not tenant:
            return None
        known = tenant_id(tenant)
        if await self._bucket.get(known) is None:
            raise _unknown(tenant)
        return known

    def _check_plan(self, plan: str) -> None:
        if plan and plan not in self._plans:
            raise Rejected("PLAN_UNKNOWN", f"there is no plan {plan}: choose one of {', '.join(sorted(self._plans))}")


def _place(key: KeyRecord) -> str:
    """Text that sorts as the keys are listed."""
    return f"{key.created_at.astimezone(UTC):%Y%m%dT%H%M%S%f}{key.key_id}"


def _unknown(tenant: str) -> Missing:
    return Missing("TENANT_UNKNOWN", f"there is no tenant {tenant}: create it first")
