"""Documents' records: what is wanted of each document and how far it got; changed by compare-and-set."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict

from services.contracts.events import derived_id, truncated_to_millis
from services.contracts.failures import Conflict, Missing
from services.contracts.tenants import TenantId
from services.runtime.buckets import Bucket
from services.runtime.page_tokens import last_key, page_token_after
from services.runtime.records import Records


class State(StrEnum):
    """Where a document is on its way."""

    ACCEPTED = "accepted"
    INDEXED = "indexed"
    FAILED = "failed"
    DELETING = "deleting"
    DELETED = "deleted"
    """Only ever told to watchers: a deleted document has no record."""


class Document(BaseModel):
    """One document's record."""

    model_config = ConfigDict(frozen=True)

    document_id: str
    name: str
    size_bytes: int
    version: str
    """SHA-256 of the bytes, in hex."""
    upload_id: UUID
    """Names these bytes' blob and this indexing; a second put of the same bytes after a deletion has another."""
    state: State
    accepted_at: AwareDatetime
    updated_at: AwareDatetime
    media_type: str = ""
    chunk_count: int = 0
    failure_code: str = ""
    failure_reason: str = ""
    indexed_version: str = ""
    indexed_upload_id: UUID | None = None
    indexed_name: str = ""
    """What the indexed version was put as; empty in records of earlier releases."""
    left_over: tuple[UUID, ...] = ()
    """Uploads that nobody wants any more and whose bytes are still to be removed."""
    stray_points: bool = False
    """Points of other versions than the indexed one may be there and are still to be removed."""
    key_id: str = ""
    """The API key that put these bytes; empty in records of earlier releases."""

    @property
    def unfinished(self) -> bool:
        """Whether a worker still has something to do for it."""
        return self.state in {State.ACCEPTED, State.DELETING} or bool(self.left_over) or self.stray_points

    @property
    def uploads(self) -> frozenset[UUID]:
        """All uploads that it names."""
        indexed = () if self.indexed_upload_id is None else (self.indexed_upload_id,)
        return frozenset((self.upload_id, *indexed, *self.left_over))

    def in_place_of(self, old: Self) -> Self:
        """This record, just accepted, with what has to be remembered of the one that it replaces."""
        if old.state is State.DELETING:
            # Its points may be gone already, and a version that was deleted must not come back when this one fails.
            return self.model_copy(update={"left_over": tuple(old.uploads), "stray_points": True})
        return self.model_copy(
            update={
                "indexed_version": old.indexed_version,
                "indexed_upload_id": old.indexed_upload_id,
                "indexed_name": old.indexed_name,
                "chunk_count": old.chunk_count,
                "stray_points": old.stray_points,
                "left_over": tuple(old.uploads - {old.indexed_upload_id}),
            }
        )

    def moved(self, state: State, **changes: object) -> Self:
        """This record in another state, now."""
        return self.model_copy(update={"state": state, "updated_at": _now(), **changes})


def document_id_of(tenant: TenantId, name: str) -> str:
    """The id of a document that was put without one: the same name is the same document."""
    return derived_id("document", tenant, name).hex


def accepted(document_id: str, name: str, size_bytes: int, version: str, upload_id: UUID, key_id: str = "") -> Document:
    """The record of a document that was just put."""
    now = _now()
    return Document(
        document_id=document_id,
        name=name,
        size_bytes=size_bytes,
        version=version,
        upload_id=upload_id,
        state=State.ACCEPTED,
        accepted_at=now,
        updated_at=now,
        key_id=key_id,
    )


class Documents:
    """All tenants' records. Every method raises ``Busy`` when the bus is away."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.records = Records(bucket, Document.model_validate_json)
        """For watching, as the bucket is."""

    @property
    def bucket(self) -> Bucket:
        """For watching."""
        return self._bucket

    async def find(self, tenant: TenantId, document_id: str) -> tuple[Document, int] | None:
        """The record and its revision, or None.

        Raises:
            Missing: the record cannot be read.
        """
        return await self.records.find(key_of(tenant, document_id))

    async def get(self, tenant: TenantId, document_id: str) -> tuple[Document, int]:
        """The record and its revision.

        Raises:
            Missing: the tenant has no such document, or its record cannot be read.
        """
        found = await self.find(tenant, document_id)
        if found is None:
            raise Missing("DOCUMENT_UNKNOWN", "there is no document with this id")
        return found

    async def page(
        self, tenant: TenantId, *, after: str, limit: int, state: State | None
    ) -> tuple[list[Document], str]:
        """A page of the tenant's records by id, and the token of the next one ("" after the last).

        Raises:
            Rejected: `after` is no token of this list.
        """
        last = last_key("documents", after)
        records = [record for _, record in await self.records.listed(f"{tenant}.>")]
        wanted = [r for r in records if r.document_id > last and (state is None or r.state is state)]
        page = wanted[:limit]
        return page, page_token_after("documents", page[-1].document_id) if len(wanted) > limit else ""

    async def everyones(self) -> list[tuple[TenantId, Document]]:
        """Every tenant's records."""
        return [(TenantId(key.split(".", 1)[0]), record) for key, record in await self.records.listed()]

    async def replace(self, tenant: TenantId, new: Document, revision: int | None) -> bool:
        """Writes `new` if the record is still at `revision` (None: if there is none); tells whether it did."""
        key, value = key_of(tenant, new.document_id), new.model_dump_json().encode()
        try:
            if revision is None:
                await self._bucket.create(key, value)
            else:
                await self._bucket.update(key, value, revision)
        except Conflict:
            return False
        return True

    async def forget(self, tenant: TenantId, document_id: str, revision: int) -> bool:
        """Removes the record if it is still at `revision`; tells whether it did."""
        try:
            await self._bucket.delete(key_of(tenant, document_id), revision)
        except Conflict:
            return False
        return True


def key_of(tenant: TenantId, document_id: str) -> str:
    """The record's key. Neither part can hold a dot, so no tenant's pattern matches another's keys."""
    return f"{tenant}.{document_id}"


def _now() -> datetime:
    return truncated_to_millis(datetime.now(UTC))
