"""Who calls: API keys turned into a Caller.

A key is ``hw_<key id>_<secret>``. Only the SHA-256 of the secret is stored; the secret has 256 random bits, so a slow
hash would add nothing but latency. Records live in a bucket that every process watches, so a key that is issued or
revoked anywhere counts everywhere within moments.
"""

import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict

from services.contracts.failures import Conflict, Denied, Missing, Unauthenticated
from services.contracts.tenants import TenantId
from services.runtime.buckets import Bucket
from services.runtime.mirror import Mirror

_KEY = re.compile(r"hw_([A-Za-z0-9]{12})_([A-Za-z0-9_-]{43})")
_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Caller:
    """Who makes the call in progress."""

    tenant: TenantId | None
    """None for the platform's own keys."""
    scopes: frozenset[str]
    key_id: str


class KeyRecord(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True)

    key_id: str
    tenant: TenantId | None
    scopes: frozenset[str]
    description: str
    created_at: AwareDatetime
    revoked_at: AwareDatetime | None = None
    secret_hash: str


_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Who makes the call in progress.

    Raises:
        Unauthenticated: there is none.
    """
    try:
        return _caller.get()
    except LookupError:
        raise Unauthenticated("NO_CALLER", "this needs a caller") from None


def caller_tenant() -> TenantId:
    """The tenant whose data the call in progress is about.

    Raises:
        Denied: the caller's key belongs to no tenant.
    """
    tenant = caller().tenant
    if tenant is None:
        raise Denied("TENANT_KEY_REQUIRED", "this call is about one tenant's data: use a key of that tenant")
    return tenant


def set_caller(who: Caller) -> None:
    """Names the caller of the call in progress; for the rpc server alone."""
    _caller.set(who)


class KeyStore:
    """API keys, kept in a bucket and mirrored in memory. A key whose record cannot be read is not valid."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._mirror = Mirror(bucket, KeyRecord.model_validate_json, unreadable="drop")

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Keeps the mirror up to date while the context is open."""
        async with self._mirror.watching():
            yield

    async def authenticate(self, key: str) -> Caller:
        """Whom `key` belongs to.

        Raises:
            Unauthenticated: it is malformed, unknown or revoked.
            Busy: it is not known here yet and the bus is away.
        """
        wrong = Unauthenticated("KEY_INVALID", "the API key is not valid")
        match = _KEY.fullmatch(key)
        if match is None:
            raise wrong
        key_id, secret = match.groups()
        record = self._mirror.values.get(key_id) or await self._load(key_id)
        if record is None or not hmac.compare_digest(record.secret_hash, _hash(secret)):
            raise wrong
        if record.revoked_at is not None:
            raise Unauthenticated("KEY_REVOKED", "the API key was revoked")
        return Caller(record.tenant, record.scopes, record.key_id)

    async def issue(self, tenant: TenantId | None, scopes: frozenset[str], description: str) -> tuple[KeyRecord, str]:
        """Makes a key; returns its record and the key itself, which nobody can see again."""
        key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))
        return await self._store(key_id, secrets.token_urlsafe(32), tenant, scopes, description)

    async def adopt(self, key: str, scopes: frozenset[str], description: str) -> None:
        """Makes `key` valid for no tenant; nothing happens when it is already.

        Raises:
            Unauthenticated: it is malformed.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            raise Unauthenticated("KEY_INVALID", "a key looks like hw_<12 characters>_<43 characters>")
        with contextlib.suppress(Conflict):
            await self._store(match[1], match[2], None, scopes, description)

    async def revoke(self, key_id: str) -> KeyRecord:
        """Ends a key.

        Raises:
            Missing: there is no such key, or its record cannot be read.
        """
        found = await self._mirror.records.find(key_id)
        if found is None:
            raise Missing("KEY_UNKNOWN", "there is no key with this id")
        record, revision = found
        if record.revoked_at is None:
            record = record.model_copy(update={"revoked_at": datetime.now(UTC)})
            revision = await self._bucket.put(key_id, record.model_dump_json().encode())
        self._mirror.put(key_id, record, revision)
        return record

    async def list(self, tenant: TenantId | None) -> list[KeyRecord]:
        """A tenant's keys, or those of no tenant, oldest first."""
        records = [record for _, record in await self._mirror.records.listed()]
        return sorted((r for r in records if r.tenant == tenant), key=lambda r: (r.created_at, r.key_id))

    async def _store(
        self, key_id: str, secret: str, tenant: TenantId | None, scopes: frozenset[str], description: str
    ) -> tuple[KeyRecord, str]:
        record = KeyRecord(
            key_id=key_id,
            tenant=tenant,
            scopes=scopes,
            description=description,
            created_at=datetime.now(UTC),
            secret_hash=_hash(secret),
        )
        revision = await self._bucket.create(key_id, record.model_dump_json().encode())
        self._mirror.put(key_id, record, revision)
        return record, f"hw_{key_id}_{secret}"

    async def _load(self, key_id: str) -> KeyRecord | None:
        entry = await self._bucket.get(key_id)
        return None if entry is None else self._mirror.records.read(entry)


def new_key() -> str:
    """A key that nobody has yet."""
    return f"hw_{''.join(secrets.choice(_ID_ALPHABET) for _ in range(12))}_{secrets.token_urlsafe(32)}"


def is_key(text: str) -> bool:
    """Whether `text` has the form of a key."""
    return _KEY.fullmatch(text) is not None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
