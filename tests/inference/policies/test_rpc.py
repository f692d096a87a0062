"""PolicyService over a real socket: who may do what, and what comes back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from headwater.inference.v1 import policies_pb2 as pb
from headwater.inference.v1.policies_pb2_grpc import PolicyServiceStub, add_PolicyServiceServicer_to_server

from services.contracts.streams import ASSIGNMENTS_BUCKET, KEYS_BUCKET, POLICIES_BUCKET
from services.contracts.tenants import TenantId
from services.inference.policies.rpc import PolicyRpc
from services.inference.policies.schema import Policy, StagePolicy
from services.inference.policies.store import PolicyStore
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings

if TYPE_CHECKING:
    from headwater.inference.v1.policies_pb2_grpc import PolicyServiceAsyncStub  # declared by the stubs alone

BUILT_IN = Policy(name="built-in", stages=(StagePolicy(name="s", model="fast"),))
TEXT = "name: support\nstages:\n  - {name: s, model: fast}\n"


@dataclass(frozen=True)
class Served:
    """The service, and keys to call it with."""

    stub: "PolicyServiceAsyncStub"
    admin: tuple[tuple[str, str], ...]
    admin_id: str
    acme: tuple[tuple[str, str], ...]


@pytest.fixture
async def served(bus: Bus) -> AsyncIterator[Served]:
    """A server with the policy service."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    record, admin = await keys.issue(None, frozenset({"SCOPE_ADMIN"}), "")
    _, acme = await keys.issue(TenantId("acme"), frozenset({"SCOPE_GENERATE"}), "")
    store = PolicyStore(
        await bus.bucket(POLICIES_BUCKET),
        await bus.bucket(ASSIGNMENTS_BUCKET),
        built_in=BUILT_IN,
        known_models={"fast"},
        priced=lambda: {"fast"},
    )
    server = RpcServer(RpcSettings(address="127.0.0.1:0"), keys)
    server.add(add_PolicyServiceServicer_to_server, PolicyRpc(store))
    address = server.listen()
    async with store.watching(), server.serving(timedelta(seconds=1)), grpc.aio.insecure_channel(address) as channel:
        yield Served(
            PolicyServiceStub(channel),
            (("authorization", f"Bearer {admin}"),),
            record.key_id,
            (("authorization", f"Bearer {acme}"),),
        )


async def test_a_policy_is_put_activated_and_seen(served: Served) -> None:
    """The author is the key, not what somebody says."""
    put = await served.stub.PutPolicy(pb.PutPolicyRequest(text=TEXT), metadata=served.admin)
    assert (put.version.name, put.version.version, put.version.author_key_id) == ("support", 1, served.admin_id)
    request = pb.ActivatePolicyRequest(tenant_id="acme", feature="*", name="support", version=1)
    activated = await served.stub.ActivatePolicy(request, metadata=served.admin)
    assert activated.assignment.activations[0].author_key_id == served.admin_id
    asked = pb.GetActivePolicyRequest(tenant_id="acme", feature="chat")
    active = await served.stub.GetActivePolicy(asked, metadata=served.admin)
    assert active.version.text == TEXT
    assert active.assignment == activated.assignment


async def test_a_tenant_sees_its_own_policy_and_not_who_put_it(served: Served) -> None:
    """The tenant comes from the key."""
    await served.stub.PutPolicy(pb.PutPolicyRequest(text=TEXT), metadata=served.admin)
    request = pb.ActivatePolicyRequest(tenant_id="acme", feature="*", name="support", version=1)
    await served.stub.ActivatePolicy(request, metadata=served.admin)
    active = await served.stub.GetActivePolicy(pb.GetActivePolicyRequest(), metadata=served.acme)
    assert (active.version.name, active.version.text) == ("support", TEXT)
    assert served.admin_id not in str(active)


async def test_what_is_assigned_and_what_runs_in_its_place_are_told_apart(served: Served, bus: Bus) -> None:
    """With the reason; the sentence, which names the platform's models, is not for tenants."""
    more = {"fast", "large"}
    elsewhere = PolicyStore(
        await bus.bucket(POLICIES_BUCKET),
        await bus.bucket(ASSIGNMENTS_BUCKET),
        built_in=BUILT_IN,
        known_models=more,
        priced=lambda: more,
    )
    for model in ("fast", "large"):
        record = await elsewhere.put(TEXT.replace("fast", model), "key")
        await elsewhere.activate("acme", "*", "support", record.version, "key")
    asked = pb.GetActivePolicyRequest(tenant_id="acme", feature="chat")
    async with asyncio.timeout(30):
        while not (active := await served.stub.GetActivePolicy(asked, metadata=served.admin)).fallback_reason:
            await asyncio.sleep(0.01)
    assert (active.version.version, active.version.text) == (1, TEXT)
    assert [activation.version for activation in active.assignment.activations] == [2, 1]
    assert active.fallback_reason == "POLICY_INVALID"
    assert active.fallback_detail == "line 3: nobody knows a model 'large'; there are: fast"
    own = await served.stub.GetActivePolicy(pb.GetActivePolicyRequest(feature="chat"), metadata=served.acme)
    assert (own.version.version, own.assignment.activations[0].version) == (1, 2)
    assert (own.fallback_reason, own.fallback_detail) == ("POLICY_INVALID", "")


@pytest.mark.parametrize("tenant", ["acme", "globex"])
async def test_a_tenant_names_no_tenant(served: Served, tenant: str) -> None:
    """Neither another nor itself."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.GetActivePolicy(pb.GetActivePolicyRequest(tenant_id=tenant), metadata=served.acme)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_tenants_key_manages_nothing(served: Served) -> None:
    """Policies are the platform's."""
    activation = pb.ActivatePolicyRequest(tenant_id="acme", feature="*", name="support", version=1)
    for call in (
        served.stub.PutPolicy(pb.PutPolicyRequest(text=TEXT), metadata=served.acme),
        served.stub.GetPolicy(pb.GetPolicyRequest(name="support"), metadata=served.acme),
        served.stub.ListPolicies(pb.ListPoliciesRequest(), metadata=served.acme),
        served.stub.ActivatePolicy(activation, metadata=served.acme),
    ):
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_the_platforms_key_says_whose_policy_it_means(served: Served) -> None:
    """A missing tenant is an error, never all."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.GetActivePolicy(pb.GetActivePolicyRequest(), metadata=served.admin)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_versions_are_listed_in_pages_without_their_texts(served: Served) -> None:
    """Following the tokens lists each once, in the order of numbers."""
    for number in range(11):
        await served.stub.PutPolicy(pb.PutPolicyRequest(text=f"# {number}\n{TEXT}"), metadata=served.admin)
    listed: list[pb.PolicyVersion] = []
    request = pb.ListPoliciesRequest(page_size=4)
    while True:
        page = await served.stub.ListPolicies(request, metadata=served.admin)
        listed += page.versions
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert [version.version for version in listed] == list(range(1, 12))
    assert not any(version.text for version in listed)


async def test_a_wrong_policy_is_refused_with_its_line(served: Served) -> None:
    """The author is told what to change."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.PutPolicy(pb.PutPolicyRequest(text=TEXT.replace("fast", "slow")), metadata=served.admin)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "line 3: nobody knows a model 'slow'; there are: fast"


async def test_an_activation_on_an_old_revision_is_refused(served: Served) -> None:
    """Revision 0 stands for an assignment that is not there."""
    await served.stub.PutPolicy(pb.PutPolicyRequest(text=TEXT), metadata=served.admin)
    request = pb.ActivatePolicyRequest(tenant_id="acme", feature="*", name="support", version=1, expected_revision=0)
    await served.stub.ActivatePolicy(request, metadata=served.admin)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.ActivatePolicy(request, metadata=served.admin)
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
