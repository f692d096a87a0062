"""Keys: only their hash is kept, and a revoked one is refused everywhere."""

import asyncio

import pytest
from structlog.testing import capture_logs

from services.contracts.failures import Missing, Unauthenticated
from services.contracts.streams import KEYS_BUCKET
from services.contracts.tenants import TenantId
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore, new_key

ACME = TenantId("acme")
SCOPES = frozenset({"SCOPE_SEARCH"})


async def test_an_issued_key_names_its_caller(bus: Bus) -> None:
    """Tenant and scopes come from the key's record."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    record, key = await keys.issue(ACME, SCOPES, "for a test")
    who = await keys.authenticate(key)
    assert (who.tenant, who.scopes, who.key_id) == (ACME, SCOPES, record.key_id)


async def test_the_secret_is_not_stored(bus: Bus) -> None:
    """Whoever reads the bucket cannot call."""
    bucket = await bus.bucket(KEYS_BUCKET)
    _, key = await KeyStore(bucket).issue(ACME, SCOPES, "for a test")
    secret = key.split("_", 2)[2]
    assert all(secret.encode() not in entry.value for entry in await bucket.entries())


@pytest.mark.parametrize(
    "damage",
    [
        lambda k: "",
        lambda k: k[:-1],
        lambda k: k[:-1] + ("A" if k[-1] != "A" else "B"),
        lambda k: k + "x",
        lambda k: "Bearer " + k,
    ],
)
async def test_a_damaged_key_is_refused(bus: Bus, damage: "object") -> None:
    """Nothing but the very key passes."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    _, key = await keys.issue(ACME, SCOPES, "for a test")
    with pytest.raises(Unauthenticated):
        await keys.authenticate(damage(key))  # type: ignore[operator]


async def test_a_key_counts_in_another_process_at_once_and_until_revoked(bus: Bus) -> None:
    """Issued here, valid there; revoked here, refused there within moments."""
    here, there = KeyStore(await bus.bucket(KEYS_BUCKET)), KeyStore(await bus.bucket(KEYS_BUCKET))
    async with there.watching():
        record, key = await here.issue(ACME, SCOPES, "for a test")
        assert (await there.authenticate(key)).tenant == ACME
        await here.revoke(record.key_id)
        await _refused(there, key)


async def _refused(keys: KeyStore, key: str) -> None:
    """Waits until it is."""
    async with asyncio.timeout(10):
        while True:
            try:
                await keys.authenticate(key)
            except Unauthenticated:
                return
            await asyncio.sleep(0.01)


async def test_a_damaged_record_does_not_keep_a_revoked_key_valid(bus: Bus) -> None:
    """It stands before the revocation and stops nobody who follows, nor one who starts with it."""
    bucket = await bus.bucket(KEYS_BUCKET)
    here, there, later = [KeyStore(await bus.bucket(KEYS_BUCKET)) for _ in range(3)]
    async with there.watching():
        record, key = await here.issue(ACME, SCOPES, "for a test")
        assert (await there.authenticate(key)).tenant == ACME
        await bucket.put("00junk", b"{junk")
        await here.revoke(record.key_id)
        await _refused(there, key)
        async with later.watching():
            await _refused(later, key)
    assert [listed.key_id for listed in await here.list(ACME)] == [record.key_id]


@pytest.mark.parametrize("harm", ["damaged", "deleted"])
async def test_a_key_without_a_record_that_can_be_read_is_refused(bus: Bus, harm: str) -> None:
    """As if it was revoked, also where it was used before; no log quotes what is left of the record."""
    bucket = await bus.bucket(KEYS_BUCKET)
    here, there = KeyStore(bucket), KeyStore(await bus.bucket(KEYS_BUCKET))
    record, key = await here.issue(ACME, SCOPES, "for a test")
    async with there.watching():
        assert (await there.authenticate(key)).tenant == ACME
        entry = await bucket.get(record.key_id)
        assert entry is not None
        with capture_logs() as logs:
            if harm == "damaged":
                await bucket.put(record.key_id, entry.value[:-1])
            else:
                await bucket.delete(record.key_id, entry.revision)
            await _refused(there, key)
    assert record.secret_hash[:8] not in repr(logs)


async def test_adopting_twice_changes_nothing(bus: Bus) -> None:
    """The platform's own key is adopted at every start; revoking it sticks."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    key = new_key()
    await keys.adopt(key, SCOPES, "own")
    await keys.adopt(key, SCOPES, "own")
    (record,) = await keys.list(None)
    await keys.revoke(record.key_id)
    await keys.adopt(key, SCOPES, "own")
    with pytest.raises(Unauthenticated):
        await keys.authenticate(key)


async def test_an_unknown_key_cannot_be_revoked(bus: Bus) -> None:
    """There is nothing to end."""
    with pytest.raises(Missing):
        await KeyStore(await bus.bucket(KEYS_BUCKET)).revoke("nobody")


async def test_keys_are_listed_by_tenant(bus: Bus) -> None:
    """A tenant's list holds its own keys only."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    await keys.issue(ACME, SCOPES, "a")
    await keys.issue(TenantId("globex"), SCOPES, "b")
    assert [record.description for record in await keys.list(ACME)] == ["a"]
