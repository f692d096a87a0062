"""What is kept of a tenant. Apart from tenants.py, which commands import that must start fast."""

from pydantic import AwareDatetime, BaseModel, ConfigDict

from services.contracts.tenants import TenantId


class TenantRecord(BaseModel):
    """A customer of the platform."""

    model_config = ConfigDict(frozen=True)

    tenant: TenantId
    display_name: str
    created_at: AwareDatetime
    plan: str = ""
    """The name of its plan; empty: the one that inference gives to all who have none."""
