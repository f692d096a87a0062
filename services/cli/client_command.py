"""What all commands that talk to a server share: their options, their connection, how they end."""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import grpc
import typer

from services.cli.connection import DEFAULT_ADDRESS, Connection, Role, Server, connected, credential, server
from services.cli.data_folder import DataFolder, default_data_folder
from services.cli.durations import duration
from services.cli.errors import CommandFailed, Exit, of_rpc_error
from services.cli.rendering import note
from services.runtime.durations import in_words

PANEL = "Connection"


class Page(Protocol):
    """A list's answer."""

    @property
    def next_page_token(self) -> str:
        """What asks for the next one; empty after the last."""


P = TypeVar("P", bound=Page)


@dataclass(frozen=True)
class Session:
    """What a command is given."""

    connection: Connection
    server: Server
    folder: DataFolder
    timeout: timedelta
    json: bool
    """Print JSON for programs instead of words for people."""

    def failure(self, error: grpc.aio.AioRpcError) -> CommandFailed:
        """What the status of one of this session's calls means."""
        return of_rpc_error(error, self.server.address, self.timeout)

    async def pages(self, method: Callable[..., Awaitable[P]], request: Any) -> AsyncIterator[P]:
        """A list's pages, from the one that `request` asks for; it is changed to ask for the next each time."""
        while True:
            page = await method(request, **self.connection.terms)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


ClientFunction = Callable[..., Awaitable[Exit | None]]


def client_command(
    app: typer.Typer, name: str, *, role: Role, timeout: timedelta, example: str
) -> Callable[[ClientFunction], ClientFunction]:
    """Registers ``async def command(session, …)`` under `name`; the options all commands share are added to its own.

    `role` says whose key it needs, `timeout` is the default deadline of each of its calls, `example` ends its help.
    """

    def register(function: ClientFunction) -> ClientFunction:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = _shared_options(role, timeout)

        def command(context: typer.Context, **values: Any) -> None:
            options = {option.name: values.pop(option.name) for option in shared}
            _settle_whose(context, options)
            raise typer.Exit(asyncio.run(_call(function, role, options, values)) or Exit.OK)

        context_parameter = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared)]
        command.__signature__ = inspect.Signature([context_parameter, *keyword_only])  # type: ignore[attr-defined]
        app.command(name, help=inspect.getdoc(function), epilog=f"Example:  [cyan]{example}[/]")(command)
        return function

    return register


async def _call(function: ClientFunction, role: Role, options: dict[str, Any], values: dict[str, Any]) -> Exit | None:
    folder = DataFolder(options["data_dir"] or default_data_folder(os.environ))
    target = server(options["address"], folder, tls=options["tls"], ca=options["ca"])
    key = credential(role, options["key"], options.get("tenant"), folder, target)
    if not (target.tls or target.is_local):
        note(f"warning: the key travels unencrypted to {target.address}: pass --tls if the server speaks it")
    timeout = options["timeout"]
    async with connected(target, key, timeout) as connection:
        session = Session(connection, target, folder, timeout, options["json_output"])
        try:
            return await function(session, **values)
        except grpc.aio.AioRpcError as error:
            raise session.failure(error) from error


def _settle_whose(context: typer.Context, options: dict[str, Any]) -> None:
    """Drops a key from the environment when a tenant was typed: using it could put one's data in another's hands.

    Raises:
        CommandFailed: a key and a tenant were given in the same way, and one would have to be ignored.
    """
    if options["key"] is None or options.get("tenant") is None:
        return
    key_source, tenant_source = context.get_parameter_source("key"), context.get_parameter_source("tenant")
    if key_source == tenant_source:
        raise CommandFailed(Exit.USAGE, "a key and a tenant are both given: leave one out, a key says whose it is")
    if tenant_source is not None and tenant_source.name == "COMMANDLINE":
        options["key"] = None


def _timeout(text: str) -> timedelta:
    try:
        return duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _shared_options(role: Role, timeout: timedelta) -> list[inspect.Parameter]:
    options = {
        "json_output": (Annotated[bool, typer.Option("--json", help="Print JSON for programs.")], False),
        "address": (
            Annotated[
                str | None,
                typer.Option(
                    help=f"host:port of the server; by default the one running here, or {DEFAULT_ADDRESS}.",
                    metavar="HOST:PORT",
                    envvar="HEADWATER_ADDRESS",
                    rich_help_panel=PANEL,
                ),
            ],
            None,
        ),
        "key": (
            Annotated[
                str | None,
                typer.Option(
                    help="API key; better in the environment, where other users cannot see it.",
                    metavar="KEY",
                    envvar="HEADWATER_KEY",
                    show_default=False,
                    rich_help_panel=PANEL,
                ),
            ],
            None,
        ),
        "tenant": (
            Annotated[
                str | None,
                typer.Option(
                    help="Use the key saved here by `headwater key issue TENANT`.",
                    metavar="TENANT",
                    envvar="HEADWATER_TENANT",
                    rich_help_panel=PANEL,
                ),
            ],
            None,
        ),
        "tls": (
            Annotated[bool, typer.Option("--tls", help="Speak TLS.", envvar="HEADWATER_TLS", rich_help_panel=PANEL)],
            False,
        ),
        "ca": (
            Annotated[
                Path | None,
                typer.Option(
                    help="PEM file of the authority to trust; implies --tls.",
                    exists=True,
                    dir_okay=False,
                    readable=True,
                    envvar="HEADWATER_CA",
                    rich_help_panel=PANEL,
                ),
            ],
            None,
        ),
        "data_dir": (
            Annotated[
                Path | None,
                typer.Option(
                    help="The server's data folder on this machine; by default ~/.local/share/headwater.",
                    metavar="DIR",
                    envvar="HEADWATER_DATA_DIR",
                    rich_help_panel=PANEL,
                ),
            ],
            None,
        ),
        "timeout": (
            Annotated[
                timedelta,
                typer.Option(
                    help="Longest wait for each call, as 30s or 5m.",
                    metavar="TIME",
                    parser=_timeout,
                    envvar="HEADWATER_TIMEOUT",
                    rich_help_panel=PANEL,
                ),
            ],
            in_words(timeout),
        ),
    }
    if role == "admin":
        del options["tenant"]
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in options.items()
    ]
