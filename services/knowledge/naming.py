"""Names of collections: the alias a tenant is found by and the collections behind it. Fails closed."""

import re

from services.contracts.tenants import TenantId, tenant_id

MODEL_CHANGED = (
    "the tenant's documents were indexed with another embedding model: set it back, or erase them and put them again"
)

_NOT_IN_SLUGS = re.compile(r"[^a-z0-9-]+")


def alias_name(tenant: TenantId) -> str:
    """The name `tenant`'s collection is found by, ``kb_<tenant>``.

    Raises:
        Rejected: `tenant` is not a tenant id, whatever its type says.
    """
    return f"kb_{tenant_id(tenant)}"


def collection_name(tenant: TenantId, model: str, generation: int) -> str:
    """The name of one of `tenant`'s collections, ``kb_<tenant>__<model>_<generation>``.

    Tenant ids hold no underscores, so one tenant's names are never a prefix of another's.
    """
    return f"{alias_name(tenant)}__{model_slug(model)}_{generation}"


def model_slug(model: str) -> str:
    """The model's name in the characters that a collection's name may hold."""
    return _NOT_IN_SLUGS.sub("-", model.lower()).strip("-") or "model"


def is_collection_of(collection: str, tenant: TenantId) -> bool:
    """Whether `collection` is the name of one of `tenant`'s collections, of whatever model."""
    name = re.compile(rf"{re.escape(alias_name(tenant))}__[a-z0-9-]+_[0-9]+")
    return name.fullmatch(collection) is not None


def generation_of(collection: str, tenant: TenantId, model: str) -> int | None:
    """The generation of `collection` among `tenant`'s collections of `model`; None when it is not one of them."""
    prefix = f"{alias_name(tenant)}__{model_slug(model)}_"
    number = collection.removeprefix(prefix)
    return int(number) if collection.startswith(prefix) and number.isascii() and number.isdigit() else None
