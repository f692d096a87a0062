import subprocess
import sys
from typing import Any

import pytest
import typer
from headwater.retrieval.v1 import retrieval_pb2

from services.cli.errors import MEANINGS, Exit
from services.cli.main import SERVER_COMMANDS, app, main
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

NO_UTF_8 = "caf\udce9"
"""As Python reads the bytes caf\\xe9 of a command line."""


def _commands() -> list[str]:
    """Every command with its group's name, the server's too."""
    found = [*SERVER_COMMANDS]
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        found += [f"{name} {inner}" for inner in command.commands] if hasattr(command, "commands") else [name]
    return sorted({*found, "streams apply"} - {"streams"})


def _groups() -> list[str]:
    """The groups of client commands that do nothing by themselves; plain docs lists."""
    root: Any = typer.main.get_command(app)
    return [name for name, command in root.commands.items() if hasattr(command, "commands") and name != "docs"]


def test_client_commands_import_nothing_that_only_a_server_needs() -> None:
    """What takes seconds to import is not imported to show a list of tenants."""
    heavy = {"torch", "chdb", "sentence_transformers", "numpy", "pydantic", "nats", "protovalidate", "aiohttp"}
    program = f"import sys, services.cli.main; print(*sorted({heavy!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


async def test_help_names_every_command_and_every_exit_code(headwater: Headwater) -> None:
    """The first screen says what there is and how a script can tell how it went."""
    ended = await headwater()
    assert ended.code == Exit.OK
    for command in _commands():
        assert f"\n│ {command.partition(' ')[0]} " in ended.out
    assert all(f"{code.value} {meaning}" in " ".join(ended.out.split()) for code, meaning in MEANINGS.items())


@pytest.mark.parametrize("command", _commands())
async def test_every_command_has_an_example_in_its_help(headwater: Headwater, command: str) -> None:
    """Help ends with a line that can be copied."""
    ended = await headwater(*command.split(), "--help", COLUMNS="200")
    (example,) = (line for line in ended.out.splitlines() if "Example:" in line)
    assert f"headwater {command.removesuffix(' list')}" in example


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serach", "x"], "Did you mean 'search'?"),
        (["tenant"], "missing command: create, update, list; see `headwater tenant --help`"),
        (["streams"], "missing command: apply; see `headwater streams --help`"),
        (["ask", NO_UTF_8], "must be UTF-8: caf"),
        (["search", NO_UTF_8], "must be UTF-8: caf"),
        (["sql", NO_UTF_8], "must be UTF-8: caf"),
        (["tenant", "create", NO_UTF_8], "must be UTF-8: caf"),
        (["put"], "missing argument"),
        (["docs", "--timeout", "soon"], "write 500ms, 30s, 5m, 2h or 7d"),
        (["docs", "--address", "http://localhost:7443"], "is not host:port"),
        (["docs", "--state", "lost"], "choose from accepted, indexed"),
        (["costs", "--by", "colour"], "choose from tenant, feature"),
        (["costs", "--since", "yesterday"], "write 7d, 24h"),
        (["key", "issue"], "or pass --admin"),
        (["key", "issue", "acme", "--scope", "all"], "choose from documents-write"),
        (["sql", " "], "the statement is empty"),
    ],
)
async def test_a_wrong_command_line_is_one_line_that_says_what_to_write(
    headwater: Headwater, tenant_key: str, arguments: list[str], words: str
) -> None:
    """Mistakes in typing end with code 2 and the way out."""
    ended = await headwater(*arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (Exit.USAGE, "", 1)
    assert words in ended.err


@pytest.mark.parametrize("group", _groups())
def test_a_group_alone_names_its_commands(capsys: pytest.CaptureFixture[str], group: str) -> None:
    """Whoever types half a command learns the other half."""
    commands = [command.split()[1] for command in _commands() if command.startswith(f"{group} ")]
    assert main([group]) == Exit.USAGE
    told = capsys.readouterr().err
    assert all(command in told for command in commands)
    assert told.count("\n") == 1


async def test_a_bug_is_one_line_too(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """A traceback is for those who ask for it; this server tells a cost that is no number."""
    usage = retrieval_pb2.Usage(cost_usd="cheap")
    script.answers["Search"] = lambda request: retrieval_pb2.SearchResponse(usage=usage)
    ended = await headwater("search", "x")
    asked = await headwater("search", "x", HEADWATER_DEBUG="1")
    assert (ended.code, ended.err.count("\n")) == (Exit.FAILED, 1)
    assert "HEADWATER_DEBUG=1" in ended.err
    assert "Traceback" in asked.err
