"""What is kept of policies: versions, which never change, and which of them is active where."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from services.contracts.failures import Rejected
from services.contracts.tenants import tenant_id
from services.inference.policies.schema import Policy, PolicyName

ANY: Final = "*"
"""Every tenant, or every feature."""
BUILT_IN: Final = 0
"""The version of the policy that the settings make; stored versions count from 1."""
MOST_REMEMBERED = 50
"""Activations of one assignment that are kept."""

# A feature's name may hold dots, which part a key into tokens; a slash it may not.
_KEY_FORMS = {ANY: "=any", "": "=none"}


class Header(BaseModel):
    """What is kept with a version's text."""

    model_config = ConfigDict(frozen=True)

    name: PolicyName
    version: int = Field(ge=1)
    author: str
    """The id of the key it was put with."""
    created_at: AwareDatetime


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A version of a policy, as its author wrote it."""

    name: str
    version: int
    """From 1; 0 is the built-in policy."""
    author: str
    created_at: datetime
    text: str


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A version of a policy, ready to serve."""

    record: PolicyRecord
    policy: Policy

    @property
    def name(self) -> str:
        """The policy's name."""
        return self.record.name

    @property
    def version(self) -> int:
        """From 1; 0 is the built-in policy."""
        return self.record.version


class Activation(BaseModel):
    """That somebody made a version the active one."""

    model_config = ConfigDict(frozen=True)

    name: PolicyName
    version: int = Field(ge=0)
    author: str
    """The id of the key it was done with."""
    at: AwareDatetime


class Assignment(BaseModel):
    """Which policy applies to a tenant's feature, and which ones did before."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    feature: str
    activations: tuple[Activation, ...] = Field(min_length=1, max_length=MOST_REMEMBERED)
    """Newest first; the first is active."""

    def then(self, activation: Activation) -> "Assignment":
        """The assignment after another activation."""
        kept = (activation, *self.activations)[:MOST_REMEMBERED]
        return Assignment(tenant=self.tenant, feature=self.feature, activations=kept)


def version_key(name: str, version: int) -> str:
    """Where a version is kept."""
    return f"policy.{name}.{version}"


def assignment_key(tenant: str, feature: str) -> str:
    """Where an assignment is kept; `tenant` and `feature` may be ANY.

    Raises:
        Rejected: `tenant` can be no tenant's id.
    """
    if tenant != ANY:
        tenant_id(tenant)
    return f"{_KEY_FORMS.get(tenant, tenant)}.{_KEY_FORMS.get(feature, feature.replace('.', '/'))}"


def to_bytes(record: PolicyRecord) -> bytes:
    """`record` as it is kept: a line of JSON, then the text as it is."""
    header = Header(name=record.name, version=record.version, author=record.author, created_at=record.created_at)
    return header.model_dump_json().encode() + b"\n" + record.text.encode()


def from_bytes(value: bytes) -> PolicyRecord:
    """The record in `value`.

    Raises:
        Rejected: it holds none.
    """
    line, _, text = value.partition(b"\n")
    try:
        header = Header.model_validate_json(line)
        return PolicyRecord(header.name, header.version, header.author, header.created_at, text.decode())
    except (ValidationError, UnicodeDecodeError) as error:
        raise Rejected("POLICY_UNREADABLE", "the stored policy cannot be read: put it again") from error


class _Dumper(yaml.SafeDumper):
    """Writes what `parse_policy` reads: no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def policy_text(policy: Policy) -> str:
    """`policy` as a YAML document that parses to the same policy; what has its default is left out."""
    plain = policy.model_dump(mode="json", exclude_defaults=True)
    for stage, of in zip(plain["stages"], policy.stages, strict=True):
        if (calibrator := of.gate.calibrator) is not None:
            stage["gate"]["calibrator"] = {"kind": calibrator.kind, **stage["gate"]["calibrator"]}
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
