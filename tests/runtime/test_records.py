"""Records that cannot be read: the others are, and nobody learns what the damaged one holds."""

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from services.contracts.failures import Missing
from services.contracts.streams import TENANTS_BUCKET
from services.runtime.bus import Bus
from services.runtime.records import Records


class Note(BaseModel):
    """A record."""

    text: str


async def test_a_damaged_record_is_told_once_and_never_shown(bus: Bus) -> None:
    """The log has the bucket, the key and the kind of the error; not the value, which may be a cut-off secret."""
    bucket = await bus.bucket(TENANTS_BUCKET)
    records = Records(bucket, Note.model_validate_json)
    await bucket.put("bad", b'{"text": "hush-hush"')
    await bucket.put("good", b'{"text": "fine"}')
    with capture_logs() as logs:
        assert [await records.listed() for _ in range(2)] == [[("good", Note(text="fine"))]] * 2
    assert [(line["bucket"], line["key"], line["error"]) for line in logs] == [("tenants", "bad", "ValidationError")]
    assert "hush" not in repr(logs)


async def test_a_damaged_record_that_is_asked_for_is_said_to_be(bus: Bus) -> None:
    """Neither a bug nor a record that nobody wrote."""
    bucket = await bus.bucket(TENANTS_BUCKET)
    records = Records(bucket, Note.model_validate_json)
    await bucket.put("bad", b"{junk")
    assert await records.find("none") is None
    with pytest.raises(Missing) as raised:
        await records.find("bad")
    assert raised.value.reason == "RECORD_UNREADABLE"
