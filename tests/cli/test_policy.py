"""`headwater policy`: checked like a compiler, stored, listed, shown and activated."""

from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from headwater.inference.v1 import policies_pb2 as pb

from services.cli.errors import Exit
from services.contracts.failures import Missing, Rejected
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

AT = Timestamp(seconds=1795252200)  # 2026-11-21T09:10:00Z
GOOD = "name: support\nstages:\n  - {name: first, model: fast}\n  - {name: last, model: large}\n"
BAD = GOOD.replace("model: large", "modle: large, samples: 99")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good policy."""
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    return path


def version(number: int, text: str = "") -> pb.PolicyVersion:
    """A stored version."""
    return pb.PolicyVersion(name="support", version=number, author_key_id="k1", created_at=AT, text=text)


async def test_check_needs_no_server_and_no_key(headwater: Headwater, script: Script, file: Path) -> None:
    """A policy is checked where it is written."""
    ended = await headwater("policy", "check", str(file), HEADWATER_DATA_DIR="/nowhere")
    assert (ended.code, ended.err) == (Exit.OK, "")
    assert ended.out == f"{file}: policy support is valid; its stages: first, last\n"
    assert not script.requests


async def test_check_tells_every_mistake_like_a_compiler(headwater: Headwater, file: Path) -> None:
    """File, line, reason: editors jump there."""
    file.write_text(BAD)
    ended = await headwater("policy", "check", str(file))
    assert (ended.code, ended.out) == (Exit.REJECTED, "")
    assert ended.err.splitlines() == [
        f"{file}:4: 'samples' must be at most 10",
        f"{file}:4: in stages: 'model' is missing",
        f"{file}:4: in stages: there is no field 'modle'; did you mean 'model'?",
    ]


async def test_check_knows_the_models_it_is_told(headwater: Headwater) -> None:
    """The server's names cannot be known offline unless they are given."""
    ended = await headwater("policy", "check", "-", "--model", "fast", "--json", stdin=GOOD)
    assert ended.code == Exit.REJECTED
    assert ended.json == {
        "file": "-",
        "valid": False,
        "problems": [{"line": 4, "reason": "nobody knows a model 'large'; there are: fast"}],
    }


async def test_check_of_what_is_no_text_tells_the_line(headwater: Headwater, file: Path) -> None:
    """A binary file is not a policy."""
    file.write_bytes(b"name: x\n\xff\xfe")
    ended = await headwater("policy", "check", str(file))
    assert (ended.code, ended.err) == (Exit.REJECTED, f"headwater: {file}:2: this is no UTF-8 text\n")


async def test_put_sends_the_file_as_it_is(headwater: Headwater, script: Script, file: Path) -> None:
    """And tells what to do next."""
    script.answers["PutPolicy"] = lambda _: pb.PutPolicyResponse(version=version(3))
    ended = await headwater("policy", "put", str(file))
    assert script.sent("PutPolicy")[0].text == GOOD
    assert ended.out.splitlines() == [
        "Stored policy support version 3.",
        "Next: headwater policy activate support 3",
    ]


async def test_put_sends_nothing_that_is_wrong(headwater: Headwater, script: Script, file: Path) -> None:
    """Mistakes are told as check tells them."""
    file.write_text(BAD)
    ended = await headwater("policy", "put", str(file))
    assert ended.code == Exit.REJECTED
    assert ended.err.startswith(f"{file}:4: ")
    assert not script.requests


async def test_put_tells_what_only_the_server_knows(headwater: Headwater, script: Script, file: Path) -> None:
    """Its models and its prices."""

    def refuse(_: pb.PutPolicyRequest) -> pb.PutPolicyResponse:
        raise Rejected("POLICY_INVALID", "line 3: nobody knows a model 'fast'")

    script.answers["PutPolicy"] = refuse
    ended = await headwater("policy", "put", str(file))
    assert (ended.code, ended.err) == (
        Exit.REJECTED,
        "headwater: line 3: nobody knows a model 'fast' (POLICY_INVALID)\n",
    )


async def test_list_follows_the_pages(headwater: Headwater, script: Script) -> None:
    """All versions are listed, however many pages they take."""
    script.answers["ListPolicies"] = lambda request: (
        pb.ListPoliciesResponse(versions=[version(2)])
        if request.page_token
        else pb.ListPoliciesResponse(versions=[version(1)], next_page_token="support.1")
    )
    ended = await headwater("policy", "list", "support")
    assert [line.split() for line in ended.out.splitlines()[2:]] == [
        ["support", "1", "2026-11-21", "09:10", "k1"],
        ["support", "2", "2026-11-21", "09:10", "k1"],
    ]
    assert [request.name for request in script.sent("ListPolicies")] == ["support", "support"]


async def test_show_prints_the_text_alone(headwater: Headwater, script: Script) -> None:
    """It can be put into a file; what steers a terminal is made visible."""
    script.answers["GetPolicy"] = lambda request: pb.GetPolicyResponse(
        version=version(request.version, f"# \x1b[31m\n{GOOD}")
    )
    ended = await headwater("policy", "show", "support", "2")
    assert ended.out == f"# \u241b[31m\n{GOOD}"


async def test_show_of_what_is_not_there_ends_with_its_exit_code(headwater: Headwater, script: Script) -> None:
    """Programs can tell a missing policy from a broken connection."""

    def missing(_: pb.GetPolicyRequest) -> pb.GetPolicyResponse:
        raise Missing("POLICY_UNKNOWN", "there is no such policy or version")

    script.answers["GetPolicy"] = missing
    assert (await headwater("policy", "show", "support")).code == Exit.MISSING


async def test_activate_says_for_whom_and_what_was_before(headwater: Headwater, script: Script) -> None:
    """The way back is in the answer."""
    activations = [pb.PolicyActivation(name="support", version=number, at=AT) for number in (3, 2)]
    script.answers["ActivatePolicy"] = lambda request: pb.ActivatePolicyResponse(
        assignment=pb.PolicyAssignment(
            tenant_id=request.tenant_id, feature=request.feature, revision=9, activations=activations
        )
    )
    ended = await headwater("policy", "activate", "support", "3", "--tenant", "acme", "--expect", "8")
    assert ended.out == (
        "Policy support version 3 is active for tenant acme, all features. It was support version 2.\n"
    )
    sent = script.sent("ActivatePolicy")[0]
    assert (sent.tenant_id, sent.feature, sent.expected_revision) == ("acme", "*", 8)


async def test_activate_expects_nothing_unless_told(headwater: Headwater, script: Script) -> None:
    """0 would mean that nothing may be assigned."""
    script.answers["ActivatePolicy"] = lambda _: pb.ActivatePolicyResponse(
        assignment=pb.PolicyAssignment(
            tenant_id="*", feature="*", activations=[pb.PolicyActivation(name="support", version=3)]
        )
    )
    ended = await headwater("policy", "activate", "support", "3")
    assert ended.out == "Policy support version 3 is active for all tenants, all features.\n"
    assert not script.sent("ActivatePolicy")[0].HasField("expected_revision")


async def test_active_shows_a_tenant_its_own_policy(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """With the tenant's key and no tenant in the request."""
    script.answers["GetActivePolicy"] = lambda _: pb.GetActivePolicyResponse(
        version=version(3, GOOD),
        assignment=pb.PolicyAssignment(tenant_id="*", feature="chat", activations=[pb.PolicyActivation(at=AT)]),
    )
    ended = await headwater("policy", "active", "--tenant", "acme", "--feature", "chat")
    assert ended.out == GOOD
    assert ended.err == "policy support version 3, active for tenant *, feature chat, since 2026-11-21 09:10\n"
    sent = script.sent("GetActivePolicy")[0]
    assert (sent.tenant_id, sent.feature) == ("", "chat")
    assert script.authorizations == [f"Bearer {tenant_key}"]


async def test_active_says_what_is_assigned_when_another_one_runs(headwater: Headwater, script: Script) -> None:
    """And why: else the version would look like the one that was activated."""
    detail = "line 3: nobody knows a model 'large'; there are: fast\nline 4: it has [red]no price[/]"
    script.answers["GetActivePolicy"] = lambda _: pb.GetActivePolicyResponse(
        version=version(1, GOOD),
        assignment=pb.PolicyAssignment(
            tenant_id="acme", feature="*", activations=[pb.PolicyActivation(name="support", version=2, at=AT)]
        ),
        fallback_reason="POLICY_INVALID",
        fallback_detail=detail,
    )
    ended = await headwater("policy", "active", "acme", COLUMNS="80")
    assert ended.out == GOOD
    assert ended.err == (
        "policy support version 1, in place of support version 2, which is active for tenant acme, feature *, "
        "since 2026-11-21 09:10, and cannot run on that server: POLICY_INVALID, "
        "line 3: nobody knows a model 'large'; there are: fast line 4: it has [red]no price[/]\n"
    )
