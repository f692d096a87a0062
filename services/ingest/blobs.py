"""Raw documents' bytes, kept in an object store under ``<tenant>/<document id>/<upload id>``."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO
from uuid import UUID

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from services.contracts.failures import Busy, Missing
from services.contracts.tenants import TenantId
from services.runtime.telemetry import log

_COPY_BYTES = 1024 * 1024
_UNFINISHED = re.compile(r"#\d+$")
"""How a local store names a file that it is still writing; it lists none of those."""
_UNFINISHED_FOR = timedelta(hours=1)
"""Longer than any document is written for."""


def open_blobs(url: str | None, folder: Path) -> "Blobs":
    """Blobs at an S3, GCS, Azure or file URL, or in `folder` when there is none."""
    if url is not None:
        return Blobs(from_url(url))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Blobs(LocalStore(folder))


class Blobs:
    """Bytes by tenant, document and upload. Every method raises ``Busy`` when the store does not answer."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, tenant: TenantId, document_id: str, upload_id: UUID, content: IO[bytes]) -> None:
        """Stores all of `content`; nothing is there until all of it is."""
        try:
            await obstore.put_async(self._store, _path(tenant, document_id, upload_id), content)
        except (BaseError, OSError) as error:
            raise _busy() from error

    async def fetch(self, tenant: TenantId, document_id: str, upload_id: UUID, target: IO[bytes]) -> None:
        """Copies a blob into `target`, to its end.

        Raises:
            Missing: there is no such blob.
        """
        try:
            found = await obstore.get_async(self._store, _path(tenant, document_id, upload_id))
            async for piece in found.stream(min_chunk_size=_COPY_BYTES):
                target.write(piece)
            target.flush()
        except FileNotFoundError as error:
            raise Missing(
                "BLOB_MISSING", "the document's bytes are gone from the object store: put it again"
            ) from error
        except (BaseError, OSError) as error:
            raise _busy() from error

    async def delete(self, tenant: TenantId, document_id: str, upload_id: UUID) -> None:
        """Removes a blob; one that is gone already is no error."""
        try:
            await obstore.delete_async(self._store, _path(tenant, document_id, upload_id))
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise _busy() from error

    def remove_unfinished(self, before: datetime) -> int:
        """Removes what a killed process left half-written, unless it was written to since `before`; returns how many.

        Only in a folder: an object store forgets unfinished uploads by a rule of its bucket.
        """
        if not isinstance(self._store, LocalStore) or self._store.prefix is None:
            return 0
        unfinished = [
            file
            for file in Path(self._store.prefix).rglob("*#*")
            if _UNFINISHED.search(file.name) and file.stat().st_mtime < before.timestamp()
        ]
        for file in unfinished:
            file.unlink(missing_ok=True)
        return len(unfinished)


async def keep_removing_unfinished(blobs: Blobs) -> None:
    """Removes what was left half-written, now and then, for ever."""
    while True:
        try:
            removed = await asyncio.to_thread(blobs.remove_unfinished, datetime.now(UTC) - _UNFINISHED_FOR)
            if removed:
                log.warning("half-written documents of a killed process are removed", count=removed)
        except OSError as error:
            log.warning("could not look for half-written documents", error=type(error).__name__)
        await asyncio.sleep(_UNFINISHED_FOR.total_seconds())


def _path(tenant: TenantId, document_id: str, upload_id: UUID) -> str:
    return f"{tenant}/{document_id}/{upload_id}"


def _busy() -> Busy:
    return Busy("OBJECT_STORE_AWAY", "the object store does not answer")
