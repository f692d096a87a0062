"""Tenants and their keys, on a real bucket."""

import pytest
from headwater.auth.v1 import auth_pb2

from services.contracts.failures import Conflict, Failure, Missing, Rejected, Unauthenticated
from services.contracts.streams import KEYS_BUCKET, TENANTS_BUCKET
from services.metering.tenants import ADMIN_SCOPE, TENANT_SCOPES, Tenants
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore


@pytest.fixture
async def keys(bus: Bus) -> KeyStore:
    """The keys."""
    return KeyStore(await bus.bucket(KEYS_BUCKET))


@pytest.fixture
async def tenants(bus: Bus, keys: KeyStore) -> Tenants:
    """No tenants yet."""
    return Tenants(await bus.bucket(TENANTS_BUCKET), keys, ("free", "pro"))


async def test_a_tenant_is_created_once(tenants: Tenants) -> None:
    """The second time it is a conflict; without a name it is called by its id."""
    assert (await tenants.create("acme", "")).display_name == "acme"
    with pytest.raises(Conflict) as raised:
        await tenants.create("acme", "Acme")
    assert raised.value.reason == "TENANT_EXISTS"


async def test_tenants_are_listed_by_id_in_pages(tenants: Tenants) -> None:
    """Following page tokens lists each once."""
    for tenant in ("b", "c", "a"):
        await tenants.create(tenant, "")
    first = await tenants.page(2, "")
    rest = await tenants.page(2, first.next_page_token)
    assert [record.tenant for record in first.tenants + rest.tenants] == ["a", "b", "c"]
    assert rest.next_page_token == ""


async def test_a_damaged_tenant_is_left_out_of_the_list(bus: Bus, tenants: Tenants) -> None:
    """Pages are as long as they would be without it."""
    await tenants.create("b", "")
    await tenants.create("c", "")
    await (await bus.bucket(TENANTS_BUCKET)).put("a", b"{junk")
    page = await tenants.page(1, "")
    rest = await tenants.page(1, page.next_page_token)
    assert [record.tenant for record in page.tenants + rest.tenants] == ["b", "c"]
    with pytest.raises(Missing, match="damaged"):
        await tenants.update("a", "A", "")


async def test_a_key_works_until_it_is_revoked(tenants: Tenants, keys: KeyStore) -> None:
    """A key issued without scopes holds every tenant scope, for its tenant."""
    await tenants.create("acme", "")
    record, key = await tenants.issue_key("acme", [], "for the app")
    who = await keys.authenticate(key)
    assert (who.tenant, who.scopes) == ("acme", TENANT_SCOPES)
    assert [listed.key_id for listed in (await tenants.list_keys("acme", 0, "")).keys] == [record.key_id]
    await tenants.revoke_key(record.key_id)
    with pytest.raises(Unauthenticated):
        await keys.authenticate(key)


async def test_keys_are_listed_oldest_first_in_pages(tenants: Tenants) -> None:
    """Following page tokens lists each once, and no other tenant's."""
    for tenant in ("acme", "globex"):
        await tenants.create(tenant, "")
    issued = [(await tenants.issue_key(tenant, [], ""))[0] for tenant in ("acme", "globex", "acme", "acme")]
    first = await tenants.list_keys("acme", 2, "")
    rest = await tenants.list_keys("acme", 2, first.next_page_token)
    assert first.keys + rest.keys == [key for key in issued if key.tenant == "acme"]
    assert (len(first.keys), rest.next_page_token) == (2, "")


async def test_a_page_token_that_no_page_gave_is_refused(tenants: Tenants) -> None:
    """Of tenants and of keys."""
    with pytest.raises(Rejected, match="next_page_token"):
        await tenants.page(0, "x")
    with pytest.raises(Rejected, match="next_page_token"):
        await tenants.list_keys("", 0, "x")


async def test_an_admin_key_belongs_to_no_tenant(tenants: Tenants) -> None:
    """It holds the admin scope alone."""
    record, _ = await tenants.issue_key("", [], "")
    assert record.tenant is None
    assert record.scopes == {ADMIN_SCOPE}


@pytest.mark.parametrize(("tenant", "scope"), [("acme", ADMIN_SCOPE), ("", "SCOPE_SEARCH")])
async def test_scopes_must_fit_the_key(tenants: Tenants, tenant: str, scope: str) -> None:
    """No tenant's key runs the platform, no platform key acts as a tenant."""
    await tenants.create("acme", "")
    with pytest.raises(Rejected) as raised:
        await tenants.issue_key(tenant, [scope], "")
    assert raised.value.reason == "SCOPES_DO_NOT_FIT"


async def test_an_unknown_tenant_gets_no_key(tenants: Tenants) -> None:
    """A typo does not make a key for nobody."""
    with pytest.raises(Missing):
        await tenants.issue_key("acne", [], "")
    with pytest.raises(Missing):
        await tenants.list_keys("acne", 0, "")


def test_every_scope_is_a_tenants_or_the_admins() -> None:
    """A scope added to the API must be put on one side."""
    known = {name for name in dict(auth_pb2.Scope.items()) if name != "SCOPE_UNSPECIFIED"}
    assert known == {ADMIN_SCOPE, *TENANT_SCOPES}


async def test_a_tenant_changes_its_plan(tenants: Tenants) -> None:
    """What is not named stays."""
    await tenants.create("acme", "Acme Inc.", "free")
    record = await tenants.update("acme", "", "pro")
    assert (record.display_name, record.plan) == ("Acme Inc.", "pro")
    assert (await tenants.page(0, "")).tenants == [record]


@pytest.mark.parametrize(
    ("tenant", "plan", "reason"), [("acme", "gold", "PLAN_UNKNOWN"), ("no", "pro", "TENANT_UNKNOWN")]
)
async def test_what_is_not_there_cannot_be_had(tenants: Tenants, tenant: str, plan: str, reason: str) -> None:
    """A plan that is not configured, a tenant that nobody created."""
    await tenants.create("acme", "")
    with pytest.raises(Failure) as refused:
        await tenants.update(tenant, "", plan)
    assert refused.value.reason == reason
