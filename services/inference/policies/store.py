"""Policies on the bus: versions are created once, activated by compare-and-set, and followed by every process.

Serving reads memory alone. A version that cannot be read, or names a model this process does not know, is logged, and
the newest of those that were active there before and can run does so in its place: the same in a process that was up
all the time as in one that has just started.
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
    """What runs."""
    assignment: Assignment | None
    """None: nothing is assigned, so it is the built-in one."""
    revision: int
    """Of the assignment, for compare-and-set; 0 without one."""
    failure: Failure | None = None
    """Why the assigned version cannot run here, so that another one does; None when it runs."""


@dataclass(frozen=True, slots=True)
class _Assigned:
    """What an assignment comes to in this process."""

    assignment: Assignment
    revision: int
    running: PolicyVersion | None
    """None: no version of it can run here, and what applies without it does."""
    failure: Failure | None = None


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
        self._assigned: dict[str, _Assigned] = {}

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
        keys = (
            assignment_key(tenant, feature),
            assignment_key(tenant, ANY),
            assignment_key(ANY, feature),
            assignment_key(ANY, ANY),
        )
        found = [assigned for key in keys if (assigned := self._assigned.get(key))]
        if not found:
            return self._built_in
        running = next((assigned.running for assigned in found if assigned.running), self._built_in.version)
        return ActivePolicy(running, found[0].assignment, found[0].revision, found[0].failure)

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
        self._keep(key, _Assigned(after, revision, loaded))
        return ActivePolicy(loaded, after, revision)

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
        """Runs what an assignment says, or what ran there before if this process cannot.

        Raises:
            Busy: the bus is away.
        """
        if self._has(entry.key, entry.revision):
            return
        if entry.deleted:
            self._assigned.pop(entry.key, None)
            return
        assignment = _assignment(entry)
        if assignment is None:
            log.error("an assignment of policies cannot be read and is passed over", key=entry.key)
            return
        known = self._assigned.get(entry.key)
        running, failure = await self._runnable(assignment, known.running if known else None)
        self._keep(entry.key, _Assigned(assignment, entry.revision, running, failure))

    async def _runnable(
        self, assignment: Assignment, running: PolicyVersion | None
    ) -> tuple[PolicyVersion | None, Failure | None]:
        """The newest of an assignment's versions that can run here, and why the assigned one cannot.

        What runs already can go on: a version never changes.

        Raises:
            Busy: the bus is away.
        """
        why: Failure | None = None
        for name, version in dict.fromkeys((was.name, was.version) for was in assignment.activations):
            if running is not None and (running.name, running.version) == (name, version):
                return running, why
            try:
                return await self._load(name, version), why
            except Busy:
                raise
            except Failure as failure:
                why = why or failure
        return running, why

    def _has(self, key: str, revision: int) -> bool:
        """Whether this revision runs, or a later one is known; what cannot run is tried again: prices may have come."""
        known = self._assigned.get(key)
        return known is not None and (known.revision > revision or (known.revision == revision and not known.failure))

    def _keep(self, key: str, assigned: _Assigned) -> None:
        if self._has(key, assigned.revision):
            return
        before = self._assigned.get(key)
        self._assigned[key] = assigned
        if before is None or (before.revision, before.running) != (assigned.revision, assigned.running):
            _log(key, assigned)


def _log(key: str, assigned: _Assigned) -> None:
    told, running = assigned.assignment.activations[0], assigned.running
    if assigned.failure is None:
        log.info("a policy is active", key=key, policy=told.name, version=told.version)
        return
    log.error(
        "an activated policy cannot run here; another one runs in its place",
        key=key,
        policy=told.name,
        version=told.version,
        reason=assigned.failure.reason,
        detail=assigned.failure.message,
        running=f"{running.name} version {running.version}" if running else "what applies without this assignment",
    )


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
