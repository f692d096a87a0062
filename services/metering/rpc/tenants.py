"""Calls about tenants and keys."""

from headwater.auth.v1 import auth_pb2
from headwater.metering.v1 import tenants_pb2 as pb
from headwater.metering.v1.tenants_pb2_grpc import TenantServiceServicer

from services.contracts.tenant_record import TenantRecord
from services.metering.rpc.translation import Context, stamp_of
from services.metering.tenants import Tenants
from services.runtime.identity import KeyRecord


class TenantRpc(TenantServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Context) -> pb.CreateTenantResponse:
        """Creates a tenant."""
        record = await self._tenants.create(request.tenant_id, request.display_name, request.plan)
        return pb.CreateTenantResponse(tenant=_tenant(record))

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Context) -> pb.UpdateTenantResponse:
        """Changes a tenant."""
        record = await self._tenants.update(request.tenant_id, request.display_name, request.plan)
        return pb.UpdateTenantResponse(tenant=_tenant(record))

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Context) -> pb.ListTenantsResponse:
        """Lists tenants."""
        page = await self._tenants.page(request.page_size, request.page_token)
        return pb.ListTenantsResponse(
            tenants=[_tenant(record) for record in page.tenants], next_page_token=page.next_page_token
        )

    async def IssueKey(self, request: pb.IssueKeyRequest, context: Context) -> pb.IssueKeyResponse:
        """Issues a key."""
        scopes = [auth_pb2.Scope.Name(scope) for scope in request.scopes]
        record, key = await self._tenants.issue_key(request.tenant_id, scopes, request.description)
        return pb.IssueKeyResponse(key=_key(record), api_key=key)

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Context) -> pb.RevokeKeyResponse:
        """Revokes a key."""
        return pb.RevokeKeyResponse(key=_key(await self._tenants.revoke_key(request.key_id)))

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        """Lists keys."""
        page = await self._tenants.list_keys(request.tenant_id, request.page_size, request.page_token)
        return pb.ListKeysResponse(keys=[_key(record) for record in page.keys], next_page_token=page.next_page_token)


def _tenant(record: TenantRecord) -> pb.Tenant:
    return pb.Tenant(
        tenant_id=record.tenant,
        display_name=record.display_name,
        created_at=stamp_of(record.created_at),
        plan=record.plan,
    )


def _key(record: KeyRecord) -> pb.Key:
    return pb.Key(
        key_id=record.key_id,
        tenant_id=record.tenant or "",
        scopes=sorted(auth_pb2.Scope.Value(scope) for scope in record.scopes),
        description=record.description,
        created_at=stamp_of(record.created_at),
        revoked_at=None if record.revoked_at is None else stamp_of(record.revoked_at),
    )
