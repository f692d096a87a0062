"""Documents' bytes in a folder."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from services.contracts.tenants import TenantId
from services.ingest.blobs import open_blobs


async def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    """Not while it may still be written to, and never what is whole."""
    blobs = open_blobs(None, tmp_path)
    whole, half = uuid4(), tmp_path / "acme" / "one" / f"{uuid4()}#1"
    await blobs.put(TenantId("acme"), "one", whole, io.BytesIO(b"text"))
    half.write_bytes(b"te")
    assert blobs.remove_unfinished(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert half.exists()
    assert blobs.remove_unfinished(datetime.now(UTC) + timedelta(hours=1)) == 1
    assert [file.name for file in half.parent.iterdir()] == [str(whole)]
