"""Raw documents' bytes, kept in an object store under ``<tenant>/<document id>/<upload id>``."""

import asyncio
import contextlib
import os
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
MOST_LISTED = 500
"""Uploads of a document in a list; a record that names them all stays well below what its bucket takes."""
_UPLOAD = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Whatever else somebody lays there is not ours to remove."""
_UNFINISHED = re.compile(r"#\d+$")
"""How a local store names a file that it is still writing; it lists none of those."""
_UNFINISHED_FOR = timedelta(hours=1)
"""Longer than any document is written for."""


def open_blobs(url: str | None, folder: Path) -> "Blobs":
    """Blobs at an S3, GCS, Azure or file URL, or in `folder` when there is none."""
    if url is not None:
        return Blobs(from_url(url))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The folders of a document whose last upload goes are removed with it.
    return Blobs(LocalStore(folder, automatic_cleanup=True))


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

    async def has(self, tenant: TenantId, document_id: str, upload_id: UUID) -> bool:
        """Whether there is such a blob."""
        try:
            await obstore.head_async(self._store, _path(tenant, document_id, upload_id))
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise _busy() from error
        return True

    async def uploads(self, tenant: TenantId, document_id: str) -> frozenset[UUID]:
        """The document's uploads that lie there, at most `MOST_LISTED`, whoever put them."""
        try:
            async for batch in obstore.list(self._store, f"{tenant}/{document_id}", chunk_size=MOST_LISTED):
                names = [blob["path"].rpartition("/")[2] for blob in batch]
                return frozenset(UUID(name) for name in names if _UPLOAD.fullmatch(name))
        except (BaseError, OSError) as error:
            raise _busy() from error
        return frozenset()

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
        removed = 0
        # Not rglob, which stumbles over a folder that is removed meanwhile.
        for folder, _, names in os.walk(self._store.prefix):
            for file in (Path(folder, name) for name in names if _UNFINISHED.search(name)):
                with contextlib.suppress(FileNotFoundError):
                    if file.stat().st_mtime < before.timestamp():
                        file.unlink()
                        removed += 1
        return removed


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
