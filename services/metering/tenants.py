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
            Missing: there is no such tenant.
            Rejected: there is no such plan.
            Conflict: somebody else changed it at the same moment.
        """
        self._check_plan(plan)
        entry = await self._bucket.get(tenant_id(tenant))
        if entry is None:
            raise _unknown(tenant)
        record = TenantRecord.model_validate_json(entry.value)
        changes = {name: value for name, value in (("display_name", display_name), ("plan", plan)) if value}
        record = record.model_copy(update=changes)
        await self._bucket.update(entry.key, record.model_dump_json().encode(), entry.revision)
        return record

    async def page(self, page_size: int, page_token: str) -> TenantPage:
        """Tenants with ids after `page_token`; 0 `page_size` means 100."""
        size = page_size or DEFAULT_PAGE_SIZE
        entries = [entry for entry in await self._bucket.entries() if entry.key > page_token]
        page = entries[:size]
        return TenantPage(
            tenants=[TenantRecord.model_validate_json(entry.value) for entry in page],
            next_page_token=page[-1].key if len(entries) > size else "",
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

    async def list_keys(self, tenant: str) -> list[KeyRecord]:
        """The keys of `tenant`, or the admin keys when it is empty, oldest first.

        Raises:
            Missing: there is no such tenant.
        """
        return await self._keys.list(await self._known(tenant))

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


def _unknown(tenant: str) -> Missing:
    return Missing("TENANT_UNKNOWN", f"there is no tenant {tenant}: create it first")
