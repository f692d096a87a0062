from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from headwater.auth.v1 import auth_pb2
from headwater.metering.v1 import tenants_pb2

from services.cli.errors import Exit
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

AT = Timestamp(seconds=1795252200)  # 2026-11-21T09:10:00Z
API_KEY = "hw_q3Zk81mNx0Ab_" + "s" * 43


def issued(request: tenants_pb2.IssueKeyRequest) -> tenants_pb2.IssueKeyResponse:
    """Issues the same key to everyone."""
    key = tenants_pb2.Key(key_id="q3Zk81mNx0Ab", tenant_id=request.tenant_id, scopes=request.scopes, created_at=AT)
    return tenants_pb2.IssueKeyResponse(key=key, api_key=API_KEY)


async def test_create_tells_the_tenant_and_the_next_step(headwater: Headwater, script: Script) -> None:
    """The id and the name go as they were typed."""
    script.answers["CreateTenant"] = lambda request: tenants_pb2.CreateTenantResponse(
        tenant=tenants_pb2.Tenant(tenant_id=request.tenant_id, display_name=request.display_name)
    )
    ended = await headwater("tenant", "create", "acme", "--name", "Acme [Inc.] ✓")
    assert script.sent("CreateTenant")[0].display_name == "Acme [Inc.] ✓"
    assert ended.out.splitlines() == ["Created tenant acme.", "Next: headwater key issue acme"]


async def test_list_follows_the_pages(headwater: Headwater, script: Script) -> None:
    """All tenants are listed, however many pages they take."""

    def page(request: tenants_pb2.ListTenantsRequest) -> tenants_pb2.ListTenantsResponse:
        name = "globex" if request.page_token else "acme"
        tenant = tenants_pb2.Tenant(tenant_id=name, display_name=f"[bold]{name}", created_at=AT)
        return tenants_pb2.ListTenantsResponse(tenants=[tenant], next_page_token="" if request.page_token else "2")

    script.answers["ListTenants"] = page
    people = await headwater("tenant", "list")
    programs = await headwater("tenant", "list", "--json")
    assert [line.split() for line in people.out.splitlines()[2:]] == [
        ["acme", "[bold]acme", "(default)", "2026-11-21", "09:10"],
        ["globex", "[bold]globex", "(default)", "2026-11-21", "09:10"],
    ]
    assert programs.json[0] == {
        "tenant_id": "acme",
        "display_name": "[bold]acme",
        "created_at": "2026-11-21T09:10:00Z",
        "plan": "",
    }


async def test_update_changes_a_plan(headwater: Headwater, script: Script) -> None:
    """What was not said stays; to say nothing is a mistake."""
    script.answers["UpdateTenant"] = lambda request: tenants_pb2.UpdateTenantResponse(
        tenant=tenants_pb2.Tenant(tenant_id=request.tenant_id, plan=request.plan)
    )
    ended = await headwater("tenant", "update", "acme", "--plan", "enterprise")
    assert (script.sent("UpdateTenant")[0].plan, script.sent("UpdateTenant")[0].display_name) == ("enterprise", "")
    assert ended.out == "Tenant acme has plan enterprise.\n"
    assert (await headwater("tenant", "update", "acme")).code == Exit.USAGE


async def test_issue_prints_the_key_alone_on_stdout_and_saves_it(
    headwater: Headwater, script: Script, data_dir: Path
) -> None:
    """KEY=$(headwater key issue acme) works, and later commands need no key."""
    script.answers["IssueKey"] = issued
    ended = await headwater("key", "issue", "acme", "--scope", "search", "--scope", "generate")
    assert ended.out == API_KEY + "\n"
    assert "--no-save prevents it" in ended.err
    file = data_dir / "keys" / "acme.key"
    assert (file.read_text(), file.stat().st_mode & 0o777) == (API_KEY + "\n", 0o600)
    assert list(script.sent("IssueKey")[0].scopes) == [auth_pb2.SCOPE_SEARCH, auth_pb2.SCOPE_GENERATE]


async def test_issue_saves_nothing_when_told_not_to(headwater: Headwater, script: Script, data_dir: Path) -> None:
    """--no-save leaves no trace on disk."""
    script.answers["IssueKey"] = issued
    ended = await headwater("key", "issue", "acme", "--no-save", "--json")
    assert ended.json["api_key"] == API_KEY
    assert ended.json["saved_to"] is None
    assert not (data_dir / "keys").exists()


async def test_revoke_removes_the_saved_copy(headwater: Headwater, script: Script, data_dir: Path) -> None:
    """A key that opens nothing any more is not left lying about."""
    script.answers["IssueKey"] = issued
    script.answers["RevokeKey"] = lambda request: tenants_pb2.RevokeKeyResponse(
        key=tenants_pb2.Key(key_id=request.key_id)
    )
    await headwater("key", "issue", "acme")
    ended = await headwater("key", "revoke", "q3Zk81mNx0Ab")
    assert "Removed the copy saved here for acme" in ended.out
    assert list((data_dir / "keys").iterdir()) == []


async def test_revoke_takes_an_id_and_does_not_repeat_a_key(headwater: Headwater, script: Script) -> None:
    """Somebody pastes the key itself: it is neither sent nor shown."""
    ended = await headwater("key", "revoke", API_KEY)
    assert (ended.code, script.requests) == (Exit.USAGE, {})
    assert API_KEY not in ended.err


async def test_keys_are_listed_with_what_they_may_do(headwater: Headwater, script: Script) -> None:
    """A tenant's full set of scopes is said in words."""
    every = [scope for scope in auth_pb2.Scope.values() if scope not in (0, auth_pb2.SCOPE_ADMIN)]
    keys = [
        tenants_pb2.Key(key_id="aaa", scopes=every, description="the shop"),
        tenants_pb2.Key(key_id="bbb", scopes=[auth_pb2.SCOPE_SEARCH], revoked_at=AT),
    ]

    def page(request: tenants_pb2.ListKeysRequest) -> tenants_pb2.ListKeysResponse:
        """One key a page."""
        at = int(request.page_token or 0)
        return tenants_pb2.ListKeysResponse(keys=[keys[at]], next_page_token="" if at else "1")

    script.answers["ListKeys"] = page
    ended = await headwater("key", "list", "acme")
    assert "all a tenant may" in ended.out
    assert "2026-11-21 09:10" in ended.out.splitlines()[-1]
    listed = (await headwater("key", "list", "acme", "--json")).json
    assert [(key["scopes"], key["revoked_at"]) for key in listed][1] == (["search"], "2026-11-21T09:10:00Z")
