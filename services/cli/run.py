"""The server's commands: run, check, list, streams apply."""

import asyncio
import importlib
import inspect
import sys
from typing import Annotated

import typer
import uvloop

from services.cli.process import ALL_ROLES, Half, Role, check_roles, running
from services.cli.rendering import plain, print_json, stdout, table
from services.cli.settings import Settings, flattened, load_settings
from services.cli.welcome import welcome
from services.contracts.failures import Rejected
from services.contracts.streams import BUCKETS, STREAMS
from services.runtime.bus import apply_streams, connected
from services.runtime.process import cancel_on_signals
from services.runtime.telemetry import configure_logging, log

ALL = "all"

app = typer.Typer()
streams = typer.Typer(help="Create and update the message streams.")
app.add_typer(streams, name="streams")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command(epilog="Example:  [cyan]headwater run all[/]   or   [cyan]headwater run ingest --only worker[/]")
def run(
    roles: Annotated[
        list[str] | None,
        typer.Argument(help="all, or some of ingest, retrieval, inference, metering.", metavar="[ROLE]…"),
    ] = None,
    only: Annotated[
        Half | None, typer.Option(help="Run only the half that works on messages, or only the one that answers calls.")
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON when it is ready, instead of the welcome.")
    ] = False,
) -> None:
    """Run the platform, or some of its roles, until Ctrl-C.

    Without settings everything is embedded and keeps its data in one folder. `headwater check` shows the settings.
    """
    settings = load_settings()
    configure_logging(settings.process)
    chosen = _roles(roles or [ALL])
    uvloop.run(_run(settings, chosen, only, json_output=json_output))


@app.command(epilog="Example:  [cyan]HEADWATER_RPC__ADDRESS=0.0.0.0:7443 headwater check[/]")
def check(
    roles: Annotated[
        list[str] | None,
        typer.Argument(help="The roles to check the settings for; all by default.", metavar="[ROLE]…"),
    ] = None,
    json_output: Json = False,
) -> None:
    """Validate the settings, offline, and print them with secrets hidden."""
    settings = load_settings()
    check_roles(settings, _roles(roles or [ALL]))
    rows = flattened(settings)
    if json_output:
        print_json({row.variable: row.value for row in rows})
        return
    shown = table("setting", "value", ("what it is", "fold"))
    for row in rows:
        shown.add_row(plain(row.variable), plain(row.value, "bold" if row.changed else ""), plain(row.description))
    stdout().print(shown)


@app.command("list", epilog="Example:  [cyan]headwater list[/]")
def list_services(json_output: Json = False) -> None:
    """Print which service hears, tells, serves and owns what."""
    described = {role.value: _described(role) for role in Role}
    if json_output:
        print_json(described)
        return
    shown = table("service", "hears", "tells", "serves", "owns")
    for service, parts in described.items():
        shown.add_row(plain(service, "bold"), *(plain(parts[key]) for key in ("hears", "tells", "serves", "owns")))
    stdout().print(shown)


@streams.command("apply", epilog="Example:  [cyan]HEADWATER_BUS__URL=nats://nats:4222 headwater streams apply[/]")
def streams_apply(json_output: Json = False) -> None:
    """Create the streams and buckets on the NATS server, or change their limits to what this version wants.

    Safe to run at any time. `run all` with its embedded server does it by itself.
    """
    settings = load_settings()
    configure_logging(settings.process)
    uvloop.run(_apply(settings))
    names = [spec.name for spec in (*STREAMS, *BUCKETS)]
    if json_output:
        print_json({"applied": names})
    else:
        stdout().print(plain(f"applied: {', '.join(names)}"))


async def _run(settings: Settings, roles: frozenset[Role], only: Half | None, *, json_output: bool) -> None:
    main = asyncio.current_task()
    assert main is not None  # noqa: S101 - a coroutine that runs has a task
    signalled = cancel_on_signals(main)
    try:
        async with running(settings, roles, only) as address:
            log.info("ready", address=address, roles=sorted(roles), data_dir=str(settings.data_dir))
            if json_output:
                print_json({"address": address, "roles": sorted(roles), "data_dir": str(settings.data_dir)})
                sys.stdout.flush()
            elif roles == ALL_ROLES and settings.bus.url is None:
                stdout().print(welcome(address, settings.data_dir), soft_wrap=True)
                sys.stdout.flush()
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not signalled():
            raise
        log.info("stopped")


async def _apply(settings: Settings) -> None:
    if settings.bus.url is None:
        raise Rejected("BUS_URL_MISSING", "set HEADWATER_BUS__URL: the embedded server gets its streams from `run all`")
    async with connected(settings.bus.url, settings.bus, "headwater-streams") as bus:
        await apply_streams(bus, STREAMS, BUCKETS)


def _roles(names: list[str]) -> frozenset[Role]:
    if ALL in names:
        return ALL_ROLES
    unknown = sorted(set(names) - {role.value for role in Role})
    if unknown:
        known = ", ".join((ALL, *(role.value for role in Role)))
        raise typer.BadParameter(f"there is no role {unknown[0]!r}: choose from {known}", param_hint="ROLE")
    return frozenset(Role(name) for name in names)


def _described(role: Role) -> dict[str, str]:
    """What a service's docstring says under Hears, Tells, Serves and Owns."""
    text = inspect.getdoc(importlib.import_module(f"services.{role.value}")) or ""
    parts: dict[str, str] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word.lower() in {"hears", "tells", "serves", "owns"}:
            parts[word.lower()] = rest.strip()
        elif parts and line.startswith(" "):
            parts[list(parts)[-1]] += f" {line.strip()}"
    return parts
