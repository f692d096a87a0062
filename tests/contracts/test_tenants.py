"""Tenant ids: what is not one is refused everywhere alike."""

import pytest

from services.contracts.failures import Rejected
from services.contracts.tenants import tenant_id


@pytest.mark.parametrize("value", ["", "*", ">", "a.b", "A", "../x", "a/b", "1a", "-a", "a" * 41, "a b", "ä", "a\n"])
def test_hostile_ids_are_refused(value: str) -> None:
    """Nothing that could widen a subject, a path or a collection's name passes."""
    with pytest.raises(Rejected):
        tenant_id(value)


@pytest.mark.parametrize("value", ["a", "acme", "acme-2", "a" * 40])
def test_plain_ids_pass(value: str) -> None:
    """Letters, digits and hyphens are fine."""
    assert tenant_id(value) == value
