"""`headwater policy`: which models answer, and what their drafts must reach."""

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from headwater.inference.v1 import policies_pb2

from services.cli.client_command import Session, client_command
from services.cli.document_files import read_document, tell_problems
from services.cli.errors import Exit
from services.cli.rendering import as_json, clean, local_time, one_line, plain, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from services.contracts.documents import Problem
    from services.inference.policies.schema import Policy

app = typer.Typer(
    help="Check, store, list, show and activate cascade policies (docs/policies.md).", rich_markup_mode="rich"
)
TIMEOUT = timedelta(seconds=15)
_File = Annotated[str, typer.Argument(help="The policy, YAML or JSON; - reads standard input.", metavar="FILE")]


@app.command("check", epilog="Example:  [cyan]headwater policy check policy.yaml --model fast --model large[/]")
def check(
    file: _File,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model the server knows; repeat for more. Without it models are left to the server."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Check a policy without a server: what is wrong, line by line, as FILE:LINE: REASON."""
    policy, problems = _checked(read_document(file), model)
    if json_output:
        told = [{"line": problem.line, "reason": problem.reason} for problem in problems]
        print_json({"file": file, "valid": policy is not None, "problems": told})
    elif policy is not None:
        stages = ", ".join(stage.name for stage in policy.stages)
        stdout().print(f"{one_line(file)}: policy {policy.name} is valid; its stages: {stages}", soft_wrap=True)
    else:
        tell_problems(file, problems)
    raise typer.Exit(Exit.OK if policy is not None else Exit.REJECTED)


@client_command(app, "put", role="admin", timeout=TIMEOUT, example="headwater policy put policy.yaml")
async def put(session: Session, file: _File) -> Exit | None:
    """Store a policy as the next version of its name. It changes nothing until it is activated."""
    text = read_document(file)
    policy, problems = _checked(text, None)
    if policy is None:
        tell_problems(file, problems)
        return Exit.REJECTED
    request = policies_pb2.PutPolicyRequest(text=text)
    stored = (await session.connection.policies.PutPolicy(request, **session.connection.terms)).version
    if session.json:
        print_json(as_json(stored))
        return None
    out = stdout()
    out.print(f"Stored policy {one_line(stored.name)} version {stored.version}.")
    out.print(f"Next: headwater policy activate {one_line(stored.name)} {stored.version}", style="dim")
    return None


@client_command(app, "list", role="admin", timeout=TIMEOUT, example="headwater policy list support")
async def list_policies(
    session: Session, name: Annotated[str, typer.Argument(help="List only this policy's versions.")] = ""
) -> Exit | None:
    """List the stored versions."""
    versions: list[policies_pb2.PolicyVersion] = []
    request = policies_pb2.ListPoliciesRequest(name=name, page_size=1000)
    async for page in session.pages(session.connection.policies.ListPolicies, request):
        versions.extend(page.versions)
    if session.json:
        print_json([as_json(version) for version in versions])
        return None
    if not versions:
        stdout().print("No policies yet: the built-in one applies. Store one: headwater policy put FILE")
        return None
    listing = table("POLICY", ("VERSION", "right"), "PUT", "BY KEY")
    for version in versions:
        listing.add_row(
            plain(version.name), str(version.version), local_time(version.created_at), plain(version.author_key_id)
        )
    stdout().print(listing)
    return None


@client_command(app, "show", role="admin", timeout=TIMEOUT, example="headwater policy show support 3 > policy.yaml")
async def show(
    session: Session,
    name: Annotated[str, typer.Argument(help="The policy's name.")],
    version: Annotated[int, typer.Argument(help="Its version; 0 means the newest.", min=0)] = 0,
) -> Exit | None:
    """Print a version as it was put."""
    request = policies_pb2.GetPolicyRequest(name=name, version=version)
    shown = (await session.connection.policies.GetPolicy(request, **session.connection.terms)).version
    _print_version(session, shown)
    return None


@client_command(app, "active", role="either", timeout=TIMEOUT, example="headwater policy active acme --feature support")
async def active(
    session: Session,
    of: Annotated[str, typer.Argument(help="Whose, with the admin key; a tenant's key shows its own.")] = "",
    feature: Annotated[str, typer.Option(help="For calls of this feature.")] = "",
) -> Exit | None:
    """Print the policy that applies to a tenant's feature."""
    request = policies_pb2.GetActivePolicyRequest(tenant_id=of, feature=feature)
    response = await session.connection.policies.GetActivePolicy(request, **session.connection.terms)
    if session.json:
        print_json(as_json(response))
        return None
    told = f"policy {response.version.name} version {response.version.version}, {_why(response)}"
    stderr().print(one_line(told), soft_wrap=True)
    _print_version(session, response.version)
    return None


def _why(response: policies_pb2.GetActivePolicyResponse) -> str:
    """Why a version applies."""
    if not response.HasField("assignment"):
        return "built in: nothing is assigned"
    assigned, now = response.assignment, response.assignment.activations[0]
    where = f"active for tenant {assigned.tenant_id}, feature {assigned.feature}, since {local_time(now.at)}"
    if not response.fallback_reason:
        return where
    cause = ", ".join(filter(None, (response.fallback_reason, response.fallback_detail)))
    return f"in place of {now.name} version {now.version}, which is {where}, and cannot run on that server: {cause}"


@client_command(
    app, "activate", role="admin", timeout=TIMEOUT, example="headwater policy activate support 3 --tenant acme"
)
async def activate(
    session: Session,
    name: Annotated[str, typer.Argument(help="The policy's name.")],
    version: Annotated[int, typer.Argument(help="Its version; 0 with the built-in policy's name.", min=0)],
    tenant: Annotated[str, typer.Option(help="For this tenant; * for all that have none of their own.")] = "*",
    feature: Annotated[str, typer.Option(help="For this feature; * for all that have none of their own.")] = "*",
    expect: Annotated[
        int | None, typer.Option(help="Only if the assignment's revision is still this; 0: none is there.", min=0)
    ] = None,
) -> Exit | None:
    """Make a version the policy of a tenant's feature, in every process within moments."""
    request = policies_pb2.ActivatePolicyRequest(
        tenant_id=tenant, feature=feature, name=name, version=version, expected_revision=expect
    )
    assignment = (await session.connection.policies.ActivatePolicy(request, **session.connection.terms)).assignment
    if session.json:
        print_json(as_json(assignment))
        return None
    whose = "all tenants" if assignment.tenant_id == "*" else f"tenant {assignment.tenant_id}"
    which = "all features" if assignment.feature == "*" else f"feature {assignment.feature}"
    now, *before = assignment.activations
    was = f" It was {before[0].name} version {before[0].version}." if before else ""
    told = f"Policy {now.name} version {now.version} is active for {whose}, {which}.{was}"
    stdout().print(one_line(told), soft_wrap=True)
    return None


def _checked(text: str, models: list[str] | None) -> "tuple[Policy | None, list[Problem]]":
    # Building the schema takes a third of a second, which no other command should wait for.
    from services.inference.policies.parsing import check_policy

    return check_policy(text, known_models=models or None, priced=None)


def _print_version(session: Session, version: policies_pb2.PolicyVersion) -> None:
    if session.json:
        print_json(as_json(version))
        return
    sys.stdout.write(clean(version.text).rstrip("\n") + "\n")
