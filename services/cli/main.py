"""The `headwater` command. Client commands start fast: what runs a server is imported when it is asked for."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

# gRPC's core logs failed handshakes and taken ports to stderr itself, where we say so in one line of our own. It reads
# this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import typer
from typer.core import TyperCommand, TyperGroup

from services.cli import (
    alerts,
    ask,
    audit,
    budget,
    cascade_command,
    costs,
    docs,
    export,
    forecast,
    key,
    load,
    policy,
    prices,
    put,
    search,
    sql,
    tenant,
)
from services.cli.errors import MEANINGS, CommandFailed, Exit, of_failure
from services.cli.rendering import note, one_line
from services.contracts.failures import Failure
from services.runtime.abandonable import is_abandoned

SERVER_COMMANDS_MODULE = "services.cli.run"
"""Has `app`, a Typer with the commands below. Importing it may take seconds."""

SERVER_COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "run": "Run the platform, or some of its roles.",
        "check": "Validate the settings and print them, secrets hidden.",
        "list": "Print which service hears, tells, serves and owns what.",
        "streams": "Create and update the message streams.",
    }
)
CLIENT_COMMANDS: Mapping[str, typer.Typer | Callable[[typer.Typer], None]] = MappingProxyType(
    {
        "tenant": tenant.app,
        "key": key.app,
        "put": put.register,
        "docs": docs.app,
        "search": search.register,
        "ask": ask.register,
        "policy": policy.app,
        "cascade": cascade_command.app,
        "costs": costs.register,
        "budget": budget.app,
        "forecast": forecast.register,
        "prices": prices.app,
        "alerts": alerts.app,
        "webhook": alerts.webhook_app,
        "audit": audit.register,
        "sql": sql.register,
        "revenue": load.revenue_app,
        "outcomes": load.outcomes_app,
        "export": export.app,
    }
)
"""Groups of commands, and what adds a single one, in the order in which a newcomer needs them."""

DEBUG = "HEADWATER_DEBUG"
"""When set, a bug in a command shows its traceback."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class _Commands(TyperGroup):
    """Shows all commands, imports the server's only to run one or to show its help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*SERVER_COMMANDS, *CLIENT_COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if summary := SERVER_COMMANDS.get(cmd_name):
            return TyperCommand(cmd_name, help=summary, rich_help_panel="Run a server")
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in SERVER_COMMANDS:
            server: Any = typer.main.get_command(importlib.import_module(SERVER_COMMANDS_MODULE).app)
            command = server.commands[name]
        return name, command, rest


_EPILOG = "\n\n".join(
    (
        (
            "Start:  [cyan]headwater run all[/], then in another terminal [cyan]headwater tenant create acme[/], "
            "[cyan]headwater key issue acme[/], [cyan]headwater put FOLDER[/], [cyan]headwater ask 'QUESTION'[/]"
        ),
        "Exit codes:  " + " · ".join(f"[bold]{code.value}[/] {meaning}" for code, meaning in MEANINGS.items()),
    )
)

app = typer.Typer(
    name="headwater",
    cls=_Commands,
    help="Documents in, answers by the cheapest good-enough model, exact cost of every call.",
    epilog=_EPILOG,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _part in CLIENT_COMMANDS.items():
    if isinstance(_part, typer.Typer):
        app.add_typer(_part, name=_name)
    else:
        _part(app)


def variables() -> frozenset[str]:
    """The environment variables that commands read, most of them for their options."""
    options = _parameters(typer.main.get_command(app))
    return frozenset({DEBUG, *(option.envvar for option in options if option.envvar)})


def _parameters(command: Any) -> Iterator[Any]:
    yield from command.params
    for inner in getattr(command, "commands", {}).values():
        yield from _parameters(inner)


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code. Whatever goes wrong is one line on stderr."""
    try:
        code = app(list(arguments) or ["--help"], prog_name="headwater", standalone_mode=False)
        sys.stdout.flush()
    except CommandFailed as failed:
        return _ended(failed.exit_code, failed.message)
    except Failure as failure:
        told = of_failure(failure)
        return _ended(told.exit_code, told.message)
    except typer.TyperException as error:
        return _ended(Exit.USAGE, _usage(error))
    except (KeyboardInterrupt, typer.Abort):
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; so that Python does not complain about it at exit, write to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except OSError as error:
        return _ended(Exit.FAILED, f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except Exception as error:
        if isinstance(error, UnicodeEncodeError) and _LONE_SURROGATE.search(error.object):
            # So Python writes a typed byte that is no UTF-8: files may have such names, requests cannot hold them.
            around = error.object[max(0, error.start - 40) : error.end]
            return _ended(Exit.USAGE, f"what is typed must be UTF-8: {one_line(around)} is not")
        if os.environ.get(DEBUG):
            raise
        return _ended(Exit.FAILED, f"a bug: {type(error).__name__}; set {DEBUG}=1 to see where, and report it")
    if code == Exit.INTERRUPTED:
        # Typer makes an exit of Ctrl-C without a word.
        return _ended(Exit.INTERRUPTED, "interrupted")
    return code if isinstance(code, int) else Exit.OK


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "headwater"
    message = error.format_message().rstrip(".")
    if context and message in {"", "Missing command"}:
        message = f"missing command: {', '.join(context.command.list_commands(context))}"
    return f"{message[:1].lower()}{message[1:]}; see `{command} --help`"


def _ended(code: Exit, message: str) -> int:
    note(message, style="bold red")
    return code


def run() -> None:
    """Runs the command that was typed, and ends the process with its code."""
    code = main(sys.argv[1:])
    if is_abandoned():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
