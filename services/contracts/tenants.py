"""Tenant ids: what may stand in a subject, a collection's name and a path."""

import re
from typing import NewType

from services.contracts.failures import Rejected

TenantId = NewType("TenantId", str)

TENANT_ID_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"

_MATCHER = re.compile(TENANT_ID_PATTERN[1:-1])


def tenant_id(value: str) -> TenantId:
    """Checks that `value` can be a tenant's id.

    Raises:
        Rejected: it is empty, too long, or holds other characters than a-z, 0-9 and hyphens.
    """
    if not _MATCHER.fullmatch(value):
        raise Rejected(
            "TENANT_ID_INVALID",
            "a tenant id starts with a letter and holds up to 40 lower-case letters, digits and hyphens",
        )
    return TenantId(value)
