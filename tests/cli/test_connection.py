import asyncio
import json
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from headwater.ingest.v1 import ingest_pb2
from headwater.metering.v1 import metering_pb2, tenants_pb2

from services.cli.connection import DEFAULT_ADDRESS, Server, credential, server
from services.cli.data_folder import DataFolder, default_data_folder
from services.cli.errors import CommandFailed, Exit
from services.contracts.failures import Busy, Denied, Exhausted, Failure, Missing, Rejected
from services.contracts.tenants import TenantId
from tests.cli.conftest import ADMIN_KEY, Headwater
from tests.cli.scripted_server import Answer, Script, serving

LOCAL = Server(DEFAULT_ADDRESS, tls=False, ca=None)
REMOTE = Server("headwater.example.com:443", tls=True, ca=None)


def failing(failure: Failure) -> Answer:
    """Answers with a failure."""

    def answer(request: object) -> object:
        raise failure

    return answer


def no_documents(request: object) -> ingest_pb2.ListDocumentsResponse:
    """Answers that there are none."""
    return ingest_pb2.ListDocumentsResponse()


def unused_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_data_folder_follows_xdg() -> None:
    """A relative XDG_DATA_HOME is ignored, as the specification asks."""
    assert default_data_folder({"XDG_DATA_HOME": "/data"}) == Path("/data/headwater")
    expected = Path.home() / ".local/share/headwater"
    assert default_data_folder({}) == default_data_folder({"XDG_DATA_HOME": "data"}) == expected


@pytest.mark.parametrize(
    ("announced", "reached"),
    [("127.0.0.1:9", "127.0.0.1:9"), ("0.0.0.0:9", "127.0.0.1:9"), ("[::]:9", "[::1]:9"), (None, DEFAULT_ADDRESS)],
)
def test_a_server_on_this_machine_is_found_by_its_run_file(tmp_path: Path, announced: str | None, reached: str) -> None:
    """One that listens everywhere is reached over loopback; a run file nobody can read is as good as none."""
    (tmp_path / "run.json").write_text(json.dumps({"address": announced}) if announced else "{")
    assert server(None, DataFolder(tmp_path), tls=False, ca=None).address == reached


def test_a_saved_key_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    """Keys lie in files as private as an ssh key's."""
    file = DataFolder(tmp_path).save_tenant_key(TenantId("acme"), "hw_a_b")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_the_only_saved_tenant_key_is_used_unasked(tmp_path: Path) -> None:
    """With one tenant on a laptop there is nothing to choose."""
    folder = DataFolder(tmp_path)
    folder.save_tenant_key(TenantId("acme"), "hw_a_b")
    assert credential("tenant", None, None, folder, LOCAL) == "hw_a_b"


def test_several_saved_tenant_keys_are_a_question(tmp_path: Path) -> None:
    """The choices are listed; none is taken by chance."""
    folder = DataFolder(tmp_path)
    for tenant in ("globex", "acme"):
        folder.save_tenant_key(TenantId(tenant), f"hw_{tenant}_x")
    with pytest.raises(CommandFailed, match="acme, globex") as raised:
        credential("tenant", None, None, folder, LOCAL)
    assert raised.value.exit_code is Exit.USAGE
    assert credential("tenant", None, "globex", folder, LOCAL) == "hw_globex_x"


def test_keys_of_this_machine_are_not_sent_to_another(tmp_path: Path) -> None:
    """An address on the command line must not carry the admin key away."""
    folder = DataFolder(tmp_path)
    (tmp_path / "admin.key").write_text(ADMIN_KEY)
    with pytest.raises(CommandFailed, match="HEADWATER_KEY"):
        credential("admin", None, None, folder, REMOTE)
    assert credential("admin", ADMIN_KEY, None, folder, REMOTE) == ADMIN_KEY


def test_where_the_admin_key_is_depends_on_the_server(tmp_path: Path) -> None:
    """The server makes one in its data folder only when it runs the bus itself and was given none."""
    with pytest.raises(CommandFailed) as raised:
        credential("admin", None, None, DataFolder(tmp_path), LOCAL)
    where, _, elsewhere = raised.value.message.partition(" unless HEADWATER_BUS__URL or HEADWATER_ADMIN_KEY is set; ")
    assert where.endswith(str(tmp_path / "admin.key"))
    assert elsewhere == "otherwise pass its HEADWATER_ADMIN_KEY with --key"


def test_a_key_that_cannot_be_one_is_not_repeated(tmp_path: Path) -> None:
    """A key pasted with its newline is refused without showing it."""
    with pytest.raises(CommandFailed) as raised:
        credential("admin", "hw_secret\nx", None, DataFolder(tmp_path), LOCAL)
    assert "secret" not in raised.value.message


async def test_the_admin_key_and_a_deadline_go_with_every_call(headwater: Headwater, script: Script) -> None:
    """On the server's own machine an operator needs to pass nothing."""
    script.answers["ListTenants"] = lambda request: tenants_pb2.ListTenantsResponse()
    ended = await headwater("tenant", "list", "--timeout", "9s")
    assert ended.code == Exit.OK
    assert script.authorizations == [f"Bearer {ADMIN_KEY}"]
    assert 0 < script.deadlines_s[0] <= 9


async def test_the_environment_bounds_every_call(headwater: Headwater, script: Script) -> None:
    """Where no option says otherwise."""
    script.answers["ListTenants"] = lambda request: tenants_pb2.ListTenantsResponse()
    await headwater("tenant", "list", HEADWATER_TIMEOUT="7s")
    await headwater("tenant", "list", "--timeout", "9s", HEADWATER_TIMEOUT="7s")
    assert [round(deadline) for deadline in script.deadlines_s] == [7, 9]


async def test_a_key_in_the_environment_is_used(headwater: Headwater, script: Script) -> None:
    """HEADWATER_KEY and HEADWATER_ADDRESS do without any file."""
    script.answers["ListDocuments"] = no_documents
    key = "hw_env_key"
    await headwater("docs", HEADWATER_KEY=key, HEADWATER_ADDRESS=script.address, HEADWATER_DATA_DIR="/nonexistent")
    assert script.authorizations == [f"Bearer {key}"]


async def test_a_tenant_on_the_command_line_wins_over_a_key_in_the_environment(
    headwater: Headwater, script: Script, tenant_key: str
) -> None:
    """What was typed counts: another tenant's key must not be used in its place."""
    script.answers["ListDocuments"] = no_documents
    ended = await headwater("docs", "--tenant", "acme", HEADWATER_KEY="hw_other_key")
    assert (ended.code, script.authorizations) == (Exit.OK, [f"Bearer {tenant_key}"])


async def test_a_key_and_a_tenant_together_are_refused(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """They could name two tenants."""
    ended = await headwater("docs", "--tenant", "acme", "--key", "hw_other_key")
    assert (ended.code, script.authorizations) == (Exit.USAGE, [])
    assert "hw_other_key" not in ended.err


async def test_an_absent_server_says_how_to_start_one(headwater: Headwater, tenant_key: str) -> None:
    """The commonest first mistake has the clearest answer, and gRPC's own log stays quiet."""
    ended = await headwater("docs", "--address", f"127.0.0.1:{unused_port()}")
    assert (ended.code, ended.out, ended.err.count("\n")) == (Exit.AWAY, "", 1)
    assert "start it with `headwater run all`" in ended.err


async def test_no_key_says_how_to_get_one(headwater: Headwater) -> None:
    """Nothing saved, nothing passed."""
    ended = await headwater("search", "x")
    assert ended.code == Exit.DENIED
    assert "headwater key issue" in ended.err


async def test_a_tenant_without_a_saved_key_lists_those_with_one(headwater: Headwater, tenant_key: str) -> None:
    """A misspelt tenant is easy to see next to the right one."""
    ended = await headwater("docs", "--tenant", "acne")
    assert ended.code == Exit.DENIED
    assert "saved: acme" in ended.err


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (Denied("SCOPE_MISSING", "this call needs a key with SCOPE_SEARCH"), Exit.DENIED, "(SCOPE_MISSING)"),
        (Missing("DOCUMENT_UNKNOWN", "there is no such document"), Exit.MISSING, "there is no such document"),
        (Rejected("STATE_ODD", "that cannot be"), Exit.REJECTED, "that cannot be"),
        (
            Exhausted("BUDGET_SPENT", "the budget is spent", retry_after=timedelta(minutes=3)),
            Exit.EXHAUSTED,
            "try again in 3m",
        ),
        (Busy("BUS_AWAY", "the bus is away"), Exit.AWAY, "the bus is away (BUS_AWAY); try again in 1s"),
        (Rejected("ODD", "two\nlines and \x1b[2J"), Exit.REJECTED, "two lines and ␛[2J"),
    ],
)
async def test_each_kind_of_failure_has_its_code_and_one_line(
    headwater: Headwater, script: Script, tenant_key: str, failure: Failure, code: Exit, words: str
) -> None:
    """A script reads the code, a person the line."""
    script.answers["ListDocuments"] = failing(failure)
    ended = await headwater("docs", "--json")
    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
    assert words in ended.err


async def test_an_unknown_key_says_how_to_get_another(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """UNAUTHENTICATED with ErrorInfo KEY_INVALID, as the real server sends it."""
    script.keys = set()
    ended = await headwater("docs")
    assert ended.code == Exit.DENIED
    assert "(KEY_INVALID); pass another with --key or HEADWATER_KEY" in ended.err
    assert tenant_key not in ended.err


async def test_a_slow_server_is_given_up_at_the_deadline(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """The line says how to allow more."""

    def never(request: object) -> object:
        yield asyncio.Event().wait()

    script.answers["GenerateStream"] = never
    ended = await headwater("ask", "why?", "--timeout", "200ms")
    assert ended.code == Exit.AWAY
    assert "within 200ms: allow more with --timeout" in ended.err


async def test_tls_against_a_plaintext_server_says_what_to_check(headwater: Headwater, tenant_key: str) -> None:
    """A handshake that cannot succeed is not reported as a server that is away."""
    ended = await headwater("docs", "--tls")
    assert (ended.code, ended.err.count("\n")) == (Exit.AWAY, 1)
    assert "no secure connection" in ended.err


async def test_what_is_no_server_of_ours_says_what_to_check(headwater: Headwater, tenant_key: str) -> None:
    """A server that wants TLS closes a plaintext connection, as does one of another kind."""

    def closing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(closing, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        ended = await headwater("docs", "--address", f"127.0.0.1:{port}")
    assert (ended.code, ended.err.count("\n")) == (Exit.AWAY, 1)
    assert "pass --tls" in ended.err


async def test_a_server_that_goes_away_during_a_call_is_said_to(headwater: Headwater, tenant_key: str) -> None:
    """It was there: starting one is not the first thing to think of."""
    script = Script()
    called = asyncio.Event()

    def hang(request: object) -> object:
        called.set()
        yield asyncio.Event().wait()

    script.answers["GenerateStream"] = hang
    async with serving(script):
        asking = asyncio.ensure_future(headwater("ask", "x", "--address", script.address))
        await called.wait()
    ended = await asking
    assert (ended.code, ended.err.count("\n")) == (Exit.AWAY, 1)
    assert "went away during the call" in ended.err


async def test_costs_are_asked_with_the_admin_key_unless_a_tenant_is_named(
    headwater: Headwater, script: Script, tenant_key: str
) -> None:
    """An operator sees everyone's costs, and a tenant's as the tenant sees them."""
    script.answers["QueryCosts"] = lambda request: metering_pb2.QueryCostsResponse(total_cost_usd="0")
    await headwater("costs")
    await headwater("costs", "--tenant", "acme")
    assert script.authorizations == [f"Bearer {ADMIN_KEY}", f"Bearer {tenant_key}"]
