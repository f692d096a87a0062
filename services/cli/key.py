"""`headwater key`: what opens which tenant's door."""

from datetime import timedelta
from typing import Annotated

import typer
from headwater.auth.v1 import auth_pb2
from headwater.metering.v1 import tenants_pb2
from rich.text import Text

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import as_json, local_time, note, one_line, plain, print_json, stdout, table
from services.contracts.tenants import tenant_id

app = typer.Typer(help="Issue, list and revoke API keys.", rich_markup_mode="rich")
TIMEOUT = timedelta(seconds=15)

_SCOPES = {
    value.name.removeprefix("SCOPE_").lower().replace("_", "-"): value.number
    for value in auth_pb2.Scope.DESCRIPTOR.values
    if value.number
}


@client_command(app, "issue", role="admin", timeout=TIMEOUT, example="headwater key issue acme --scope search")
async def issue(
    session: Session,
    tenant: Annotated[str | None, typer.Argument(help="The tenant it is for; leave it out with --admin.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Issue a key for the platform instead of a tenant.")] = False,
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"What it may do; repeat for more. One of: {', '.join(_SCOPES)}. Default: all a tenant may."),
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for, in words.")] = "",
    no_save: Annotated[bool, typer.Option("--no-save", help="Do not keep it here for later commands.")] = False,
) -> Exit | None:
    """Issue a key. It is shown this once; for a server on this machine it is saved for later commands too."""
    if admin == (tenant is not None):
        raise CommandFailed(Exit.USAGE, "name the tenant the key is for, or pass --admin for the platform's own")
    request = tenants_pb2.IssueKeyRequest(
        tenant_id=tenant or "", scopes=[_scope(name) for name in scope or ()], description=description
    )
    issued = await session.connection.tenants.IssueKey(request, **session.connection.terms)
    saved_to = None
    if tenant is not None and not no_save and session.server.is_local:
        try:
            saved_to = session.folder.save_tenant_key(tenant_id(tenant), issued.api_key)
        except OSError as error:
            # The key exists and is shown only once: failing to keep it must not hide it.
            note(f"warning: the key was not saved: {error.strerror or error}")
    if session.json:
        saved = {"saved_to": str(saved_to) if saved_to else None}
        print_json({"key": as_json(issued.key), "api_key": issued.api_key, **saved})
        return None
    out = stdout()
    out.print(Text(issued.api_key, style="bold"), soft_wrap=True)
    if saved_to:
        told = f"Shown this once. Saved in {one_line(str(saved_to))} for --tenant {tenant}; --no-save prevents it."
    else:
        told = "Shown this once and not saved: keep it where your program reads HEADWATER_KEY."
    note(told)
    return None


def _in_words(scopes: set[auth_pb2.Scope.ValueType]) -> str:
    if scopes == set(_SCOPES.values()) - {auth_pb2.SCOPE_ADMIN}:
        return "all a tenant may"
    return ", ".join(name for name, number in _SCOPES.items() if number in scopes)


def _scope(name: str) -> auth_pb2.Scope.ValueType:
    number = _SCOPES.get(name.lower().replace("_", "-"))
    if number is None:
        raise CommandFailed(Exit.USAGE, f"there is no scope {name!r}: choose from {', '.join(_SCOPES)}")
    return auth_pb2.Scope.ValueType(number)


@client_command(app, "revoke", role="admin", timeout=TIMEOUT, example="headwater key revoke q3Zk81mNx0Ab")
async def revoke(
    session: Session, key_id: Annotated[str, typer.Argument(help="The key's id, as `headwater key list` shows it.")]
) -> Exit | None:
    """Revoke a key: calls with it fail from now on, everywhere."""
    if key_id.startswith("hw_"):
        raise CommandFailed(Exit.USAGE, "name the key's id, the part between the two underscores, not the key itself")
    request = tenants_pb2.RevokeKeyRequest(key_id=key_id)
    revoked = (await session.connection.tenants.RevokeKey(request, **session.connection.terms)).key
    forgotten = session.folder.forget_key(revoked.key_id) if session.server.is_local else None
    if session.json:
        print_json(as_json(revoked))
    else:
        copy = f" Removed the copy saved here for {forgotten}." if forgotten else ""
        stdout().print(f"Revoked key {one_line(revoked.key_id)}.{copy}")
    return None


@client_command(app, "list", role="admin", timeout=TIMEOUT, example="headwater key list acme")
async def list_keys(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="The tenant; leave it out for the admin keys.")] = "",
) -> Exit | None:
    """List a tenant's keys, or the admin keys; never the secrets."""
    keys: list[tenants_pb2.Key] = []
    request = tenants_pb2.ListKeysRequest(tenant_id=tenant, page_size=1000)
    async for page in session.pages(session.connection.tenants.ListKeys, request):
        keys.extend(page.keys)
    if session.json:
        print_json([as_json(key) for key in keys])
        return None
    if not keys:
        stdout().print(f"No keys. Issue one: headwater key issue {one_line(tenant) or '--admin'}")
        return None
    listing = table("KEY", "MAY", "FOR", "ISSUED", "REVOKED")
    for key in keys:
        scopes = _in_words(set(key.scopes))
        style = "dim" if key.HasField("revoked_at") else ""
        listing.add_row(
            plain(key.key_id, style),
            plain(scopes, style),
            plain(key.description, style),
            plain(local_time(key.created_at), style),
            plain(local_time(key.revoked_at), style),
        )
    stdout().print(listing)
    return None


@app.command(epilog="Example:  [cyan]export HEADWATER_ADMIN_KEY=$(headwater key generate)[/]")
def generate(json_output: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False) -> None:
    """Print a new random key that nobody has yet, offline: for HEADWATER_ADMIN_KEY of a deployment."""
    from services.runtime.identity import new_key

    key = new_key()
    if json_output:
        print_json({"api_key": key})
    else:
        stdout().print(plain(key), soft_wrap=True)
