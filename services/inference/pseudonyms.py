"""Pseudonyms: who asked, told apart in cost tables without saying who it is."""

import contextlib
import hashlib
import hmac
import secrets
from typing import Self

from services.contracts.failures import Conflict
from services.contracts.tenants import TenantId
from services.runtime.buckets import Bucket

_KEY = "pseudonym_key"


class Pseudonyms:
    """A keyed hash of a tenant's user: the same user has the same one, and without the key nobody can try names out."""

    def __init__(self, key: bytes) -> None:
        """`key`: 32 random bytes."""
        self._key = key

    @classmethod
    async def open(cls, bucket: Bucket) -> Self:
        """With the key that every process shares; the first one makes it.

        Raises:
            Busy: the bus is away.
        """
        with contextlib.suppress(Conflict):
            await bucket.create(_KEY, secrets.token_bytes(32))
        entry = await bucket.get(_KEY)
        if entry is None:
            raise RuntimeError("the key was deleted while it was made")
        return cls(entry.value)

    def of(self, tenant: TenantId, user: str) -> str:
        """The pseudonym of `tenant`'s `user`, 32 hex digits; empty for nobody."""
        if not user:
            return ""
        return hmac.new(self._key, f"{tenant}\x1f{user}".encode(), hashlib.sha256).hexdigest()[:32]
