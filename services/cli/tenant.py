"""`headwater tenant`: who uses the platform."""

from datetime import timedelta
from typing import Annotated

import typer
from headwater.metering.v1 import tenants_pb2

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import as_json, local_time, one_line, plain, print_json, stdout, table

app = typer.Typer(help="Create, change and list tenants.", rich_markup_mode="rich")
TIMEOUT = timedelta(seconds=15)


@client_command(app, "create", role="admin", timeout=TIMEOUT, example="headwater tenant create acme --name 'Acme Inc.'")
async def create(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="Its id: a letter, then letters, digits, hyphens; all lower case.")],
    name: Annotated[str, typer.Option(help="The name people call it by.")] = "",
    plan: Annotated[str, typer.Option(help="Its plan: free, pro or enterprise, unless configured otherwise.")] = "",
) -> Exit | None:
    """Create a tenant."""
    request = tenants_pb2.CreateTenantRequest(tenant_id=tenant, display_name=name, plan=plan)
    created = (await session.connection.tenants.CreateTenant(request, **session.connection.terms)).tenant
    if session.json:
        print_json(as_json(created))
    else:
        out = stdout()
        out.print(f"Created tenant {one_line(created.tenant_id)}.")
        out.print(f"Next: headwater key issue {one_line(created.tenant_id)}", style="dim")
    return None


@client_command(app, "update", role="admin", timeout=TIMEOUT, example="headwater tenant update acme --plan enterprise")
async def update(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="Its id.")],
    name: Annotated[str, typer.Option(help="The new name; left out, it stays.")] = "",
    plan: Annotated[str, typer.Option(help="The new plan; left out, it stays.")] = "",
) -> Exit | None:
    """Change a tenant's name or plan."""
    if not name and not plan:
        raise CommandFailed(Exit.USAGE, "say what to change: --plan or --name")
    request = tenants_pb2.UpdateTenantRequest(tenant_id=tenant, display_name=name, plan=plan)
    updated = (await session.connection.tenants.UpdateTenant(request, **session.connection.terms)).tenant
    if session.json:
        print_json(as_json(updated))
    else:
        stdout().print(f"Tenant {one_line(updated.tenant_id)} has plan {one_line(updated.plan or '(default)')}.")
    return None


@client_command(app, "list", role="admin", timeout=TIMEOUT, example="headwater tenant list --json")
async def list_tenants(session: Session) -> Exit | None:
    """List the tenants."""
    tenants: list[tenants_pb2.Tenant] = []
    request = tenants_pb2.ListTenantsRequest(page_size=1000)
    async for page in session.pages(session.connection.tenants.ListTenants, request):
        tenants.extend(page.tenants)
    if session.json:
        print_json([as_json(tenant) for tenant in tenants])
        return None
    if not tenants:
        stdout().print("No tenants yet. Create one: headwater tenant create acme")
        return None
    listing = table("TENANT", "NAME", "PLAN", "CREATED")
    for tenant in tenants:
        plan = plain(tenant.plan or "(default)")
        listing.add_row(plain(tenant.tenant_id), plain(tenant.display_name), plan, local_time(tenant.created_at))
    stdout().print(listing)
    return None
