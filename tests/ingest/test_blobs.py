"""Documents' bytes in a folder."""

import asyncio
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from services.contracts.tenants import TenantId
from services.ingest.blobs import open_blobs

ACME = TenantId("acme")


async def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    """Not while it may still be written to, and never what is whole."""
    blobs = open_blobs(None, tmp_path)
    whole, half = uuid4(), tmp_path / "acme" / "one" / f"{uuid4()}#1"
    await blobs.put(ACME, "one", whole, io.BytesIO(b"text"))
    half.write_bytes(b"te")
    assert blobs.remove_unfinished(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert half.exists()
    assert blobs.remove_unfinished(datetime.now(UTC) + timedelta(hours=1)) == 1
    assert [file.name for file in half.parent.iterdir()] == [str(whole)]


async def test_a_deleted_document_leaves_no_folder(tmp_path: Path) -> None:
    """Neither its own nor, with the last, its tenant's; another document's bytes stay."""
    blobs = open_blobs(None, tmp_path)
    first, second = uuid4(), uuid4()
    await blobs.put(ACME, "one", first, io.BytesIO(b"text"))
    await blobs.put(ACME, "two", second, io.BytesIO(b"text"))
    await blobs.delete(ACME, "one", first)
    assert [folder.name for folder in (tmp_path / "acme").iterdir()] == ["two"]
    await blobs.delete(ACME, "two", second)
    assert list(tmp_path.iterdir()) == []


async def test_a_put_and_a_delete_at_the_same_moment_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The folder that one of them removes may be the one that the other is about to write to."""
    blobs = open_blobs(None, tmp_path)

    async def uploaded_and_replaced() -> None:
        for _ in range(50):
            upload = uuid4()
            await blobs.put(ACME, "one", upload, io.BytesIO(b"text"))
            assert await blobs.has(ACME, "one", upload)
            await blobs.delete(ACME, "one", upload)

    await asyncio.gather(*(uploaded_and_replaced() for _ in range(8)))
    assert list(tmp_path.iterdir()) == []


async def test_a_documents_uploads_are_listed(tmp_path: Path) -> None:
    """Not another document's, nor what is no upload."""
    blobs, acme, upload = open_blobs(None, tmp_path), TenantId("acme"), uuid4()
    assert await blobs.uploads(acme, "one") == frozenset()
    await blobs.put(acme, "one", upload, io.BytesIO(b"text"))
    await blobs.put(acme, "one2", uuid4(), io.BytesIO(b"text"))
    (tmp_path / "acme" / "one" / "notes.txt").write_text("somebody's")
    assert await blobs.uploads(acme, "one") == {upload}
    assert await blobs.has(acme, "one", upload)
    assert not await blobs.has(acme, "one2", upload)
