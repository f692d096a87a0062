"""Policies on the bus: versions are created once, activated by compare-and-set, and followed by every process.

Serving reads memory alone. What cannot be read, or names a model this process does not know, leaves the policy that
runs where it is and is logged.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from services.contracts.failures import Busy, Conflict, Failure, Missing, Rejected
from services.contracts.tenants import TenantId
from services.inference.policies.parsing import parse_policy
from services.inference.policies.records import (
    ANY,
    BUILT_IN,
    Activation,
    Assignment,
    PolicyRecord,
    PolicyVersion,
    assignment_key,
    from_bytes,
    policy_text,
    to_bytes,
    version_key,
)
from services.inference.policies.schema import Policy
from services.runtime.background import background
from services.runtime.buckets import Bucket, Entry
from services.runtime.telemetry import log

_PUT_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """The policy that applies to some tenant's feature, and why."""

    version: PolicyVersion
    assignment: Assignment | None
    """None: nothing is assigned, so it is the built-in one."""
    revision: int
    """Of the assignment, for compare-and-set; 0 without one."""


class PolicyStore:
    """All policies, and in memory those that are active."""

    def __init__(
        self,
        versions: Bucket,
        assignments: Bucket,
        *,
        built_in: Policy,
        known_models: Collection[str],
        priced: Callable[[], Collection[str]],
    ) -> None:
        """`built_in` applies where nothing is assigned; the others are what parse_policy takes."""
        self._versions = versions
        self._assignments = assignments
        self._known_models = known_models
        self._priced = priced
        record = PolicyRecord(built_in.name, BUILT_IN, "", datetime.now(UTC), policy_text(built_in))
        self._built_in = ActivePolicy(PolicyVersion(record, built_in), None, 0)
        self._active: dict[str, ActivePolicy] = {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Keeps what is active up to date while the context is open.

        Raises:
            Busy: on entering: the bus is away.
        """
        for entry in await self._assignments.entries():
            await self._take(entry)
        async with background(self._assignments.follow(self._take)):
            yield

    def policy_for(self, tenant: TenantId, feature: str) -> PolicyVersion:
        """The policy of a tenant's feature; makes no round trip."""
        return self.active(tenant, feature).version

    def active(self, tenant: str, feature: str) -> ActivePolicy:
        """The policy of a tenant's feature: of those assigned the one for both, the tenant, the feature, or all."""
        for key in (
            assignment_key(tenant, feature),
            assignment_key(tenant, ANY),
            assignment_key(ANY, feature),
            assignment_key(ANY, ANY),
        ):
            if found := self._active.get(key):
                return found
        return self._built_in

    async def put(self, text: str, author: str) -> PolicyRecord:
        """Keeps `text` as the next version of the policy it names; the same text as the newest's is that version.

        Raises:
            Rejected: it is no valid policy; the message tells the lines.
            Busy: the bus is away, or many put versions of this policy at the same time.
        """
        name = parse_policy(text, known_models=self._known_models, priced=self._priced()).name
        for _ in range(_PUT_ATTEMPTS):
            newest = await self._newest(name)
            if newest is not None and _reads(newest, text):
                return from_bytes(newest.value)
            number = 1 if newest is None else _number(newest) + 1
            record = PolicyRecord(name, number, author, datetime.now(UTC), text)
            with contextlib.suppress(Conflict):
                await self._versions.create(version_key(name, number), to_bytes(record))
                return record
        raise Busy("POLICY_CONTENDED", f"others put versions of policy {name} at the same time; try again")

    async def get(self, name: str, version: int = 0) -> PolicyRecord:
        """A version of a policy; 0 means the newest.

        Raises:
            Missing: there is no such version.
            Rejected: it is there and cannot be read.
        """
        entry = await self._versions.get(version_key(name, version)) if version else await self._newest(name)
        if entry is None:
            raise Missing("POLICY_UNKNOWN", "there is no such policy or version; `headwater policy list` tells them")
        return from_bytes(entry.value)

    async def list(self, name: str = "") -> "list[PolicyRecord]":
        """All versions, of one policy if it is named, by name and number; those that cannot be read are left out."""
        records = []
        for entry in await self._versions.entries(f"policy.{name or '*'}.*"):
            try:
                records.append(from_bytes(entry.value))
            except Rejected as failure:
                log.error("a stored policy cannot be read", key=entry.key, reason=failure.reason)
        return sorted(records, key=lambda record: (record.name, record.version))

    async def activate(
        self, tenant: str, feature: str, name: str, version: int, author: str, *, expected_revision: int | None = None
    ) -> ActivePolicy:
        """Makes a version the policy of a tenant's feature, here at once and in every process within moments.

        Args:
            tenant: whose; ANY for everyone's.
            feature: which; ANY for all.
            name: the policy's.
            version: its number; BUILT_IN with the built-in policy's name goes back to that.
            author: the id of the key it is done with.
            expected_revision: of the assignment that the caller saw, 0 for none; None takes whatever is there.

        Raises:
            Missing: there is no such version.
            Rejected: this server could not run it.
            Conflict: somebody else activated another one since.
        """
        key = assignment_key(tenant, feature)
        loaded = await self._load(name, version)
        entry = await self._assignments.get(key)
        revision = 0 if entry is None else entry.revision
        if expected_revision is not None and expected_revision != revision:
            raise Conflict("CHANGED_MEANWHILE", "another policy was activated since: look again before you activate")
        before = None if entry is None else _assignment(entry)
        if before is not None and (before.activations[0].name, before.activations[0].version) == (name, version):
            after = before
        else:
            activation = Activation(name=name, version=version, author=author, at=datetime.now(UTC))
            first = Assignment(tenant=tenant, feature=feature, activations=(activation,))
            after = first if before is None else before.then(activation)
            revision = await self._write(key, after, entry)
        active = ActivePolicy(loaded, after, revision)
        self._run(key, active)
        return active

    async def _write(self, key: str, assignment: Assignment, before: Entry | None) -> int:
        value = assignment.model_dump_json().encode()
        if before is None:
            return await self._assignments.create(key, value)
        return await self._assignments.update(key, value, before.revision)

    async def _newest(self, name: str) -> Entry | None:
        return max(await self._versions.entries(f"policy.{name}.*"), key=_number, default=None)

    async def _load(self, name: str, version: int) -> PolicyVersion:
        if version == BUILT_IN:
            if name != self._built_in.version.name:
                raise Missing("POLICY_UNKNOWN", f"only {self._built_in.version.name} has a version 0, the built-in one")
            return self._built_in.version
        record = await self.get(name, version)
        policy = parse_policy(record.text, known_models=self._known_models, priced=self._priced())
        return PolicyVersion(record, policy)

    async def _take(self, entry: Entry) -> None:
        """Runs what an assignment says, if it can.

        Raises:
            Busy: the bus is away.
        """
        running = self._active.get(entry.key)
        if running is not None and running.revision >= entry.revision:
            return
        if entry.deleted:
            self._active.pop(entry.key, None)
            return
        assignment = _assignment(entry)
        if assignment is None:
            log.error("an assignment of policies cannot be read; the policy before it stays", key=entry.key)
            return
        active = assignment.activations[0]
        try:
            version = await self._load(active.name, active.version)
        except Busy:
            raise
        except Failure as failure:
            log.error(
                "an activated policy cannot run here; the one before it stays",
                key=entry.key,
                policy=active.name,
                version=active.version,
                reason=failure.reason,
                detail=failure.message,
            )
            return
        self._run(entry.key, ActivePolicy(version, assignment, entry.revision))

    def _run(self, key: str, active: ActivePolicy) -> None:
        running = self._active.get(key)
        if running is None or running.revision < active.revision:
            self._active[key] = active
            log.info("a policy is active", key=key, policy=active.version.name, version=active.version.version)


def _number(entry: Entry) -> int:
    """The version in its key; 0, which no version has, for a key that is none of ours."""
    number = entry.key.rpartition(".")[2]
    return int(number) if number.isdecimal() and len(number) < 10 else 0


def _reads(entry: Entry, text: str) -> bool:
    return entry.value.partition(b"\n")[2] == text.encode()


def _assignment(entry: Entry) -> Assignment | None:
    """What `entry` says, None when it cannot be read or belongs to another key."""
    try:
        assignment = Assignment.model_validate_json(entry.value)
        return assignment if assignment_key(assignment.tenant, assignment.feature) == entry.key else None
    except (ValidationError, Rejected):
        return None
