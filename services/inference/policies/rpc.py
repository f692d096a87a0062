"""Calls about policies: translates to and from protobuf; decides nothing but who may see what."""

from typing import Any, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext
from headwater.inference.v1 import policies_pb2 as pb
from headwater.inference.v1.policies_pb2_grpc import PolicyServiceServicer

from services.contracts.failures import Denied, Rejected
from services.contracts.tenants import TenantId, tenant_id
from services.inference.policies.records import Activation, PolicyRecord
from services.inference.policies.store import ActivePolicy, PolicyStore
from services.runtime.identity import caller

Context: TypeAlias = ServicerContext[Any, Any]

DEFAULT_PAGE_SIZE = 100


class PolicyRpc(PolicyServiceServicer):
    """The policy service's methods."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store

    async def PutPolicy(self, request: pb.PutPolicyRequest, context: Context) -> pb.PutPolicyResponse:
        """Keeps a version."""
        record = await self._store.put(request.text, caller().key_id)
        return pb.PutPolicyResponse(version=_version(record))

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.GetPolicyResponse:
        """Gets a version."""
        record = await self._store.get(request.name, request.version)
        return pb.GetPolicyResponse(version=_version(record, with_text=True))

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Context) -> pb.ListPoliciesResponse:
        """Lists versions."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        name, _, version = request.page_token.rpartition(".")
        after = (name, int(version or 0))
        records = [r for r in await self._store.list(request.name) if (r.name, r.version) > after]
        page = records[:size]
        token = f"{page[-1].name}.{page[-1].version}" if len(records) > size else ""
        return pb.ListPoliciesResponse(versions=map(_version, page), next_page_token=token)

    async def ActivatePolicy(self, request: pb.ActivatePolicyRequest, context: Context) -> pb.ActivatePolicyResponse:
        """Activates a version."""
        active = await self._store.activate(
            request.tenant_id,
            request.feature,
            request.name,
            request.version,
            caller().key_id,
            expected_revision=request.expected_revision if request.HasField("expected_revision") else None,
        )
        return pb.ActivatePolicyResponse(assignment=_assignment(active))

    async def GetActivePolicy(self, request: pb.GetActivePolicyRequest, context: Context) -> pb.GetActivePolicyResponse:
        """Gets the policy that applies; a tenant sees what runs, not who of the platform's people put it there."""
        active = self._store.active(_tenant_meant(request.tenant_id), request.feature)
        response = pb.GetActivePolicyResponse(
            version=_version(active.version.record, with_text=True), assignment=_assignment(active)
        )
        if active.failure is not None:
            response.fallback_reason, response.fallback_detail = active.failure.reason, active.failure.message
        if caller().tenant is not None:
            _for_a_tenant(response)
        return response


def _tenant_meant(asked: str) -> TenantId:
    """The caller's own tenant; for the platform's keys the one that is asked for.

    Raises:
        Denied: a tenant's key asks for a tenant by name.
        Rejected: the platform's key does not say which.
    """
    own = caller().tenant
    if own is None:
        if not asked:
            raise Rejected("TENANT_MISSING", "say whose policy: set tenant_id")
        return tenant_id(asked)
    if asked:
        raise Denied("TENANT_FROM_KEY", "a tenant's key sees its own policy: leave tenant_id empty")
    return own


def _for_a_tenant(response: pb.GetActivePolicyResponse) -> None:
    """Takes out who of the platform's people did what, and what may name models of other tenants."""
    response.version.ClearField("author_key_id")
    response.ClearField("fallback_detail")
    if response.HasField("assignment"):
        del response.assignment.activations[1:]
        response.assignment.activations[0].ClearField("author_key_id")


def _version(record: PolicyRecord, *, with_text: bool = False) -> pb.PolicyVersion:
    created_at = Timestamp()
    created_at.FromDatetime(record.created_at)
    return pb.PolicyVersion(
        name=record.name,
        version=record.version,
        author_key_id=record.author,
        created_at=created_at,
        text=record.text if with_text else "",
    )


def _assignment(active: ActivePolicy) -> pb.PolicyAssignment | None:
    if active.assignment is None:
        return None
    return pb.PolicyAssignment(
        tenant_id=active.assignment.tenant,
        feature=active.assignment.feature,
        revision=active.revision,
        activations=map(_activation, active.assignment.activations),
    )


def _activation(activation: Activation) -> pb.PolicyActivation:
    at = Timestamp()
    at.FromDatetime(activation.at)
    return pb.PolicyActivation(name=activation.name, version=activation.version, author_key_id=activation.author, at=at)
