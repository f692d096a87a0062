"""Server-sent events."""

from collections.abc import AsyncIterator

import pytest

from services.contracts.failures import Busy
from services.inference.sse import MAX_EVENT_CHARS, event_data

STREAM = ": hello\r\ndata: one\r\n\r\nevent: x\r\ndata: two\r\ndata:  more é\r\n\r\ndata:[DONE]".encode()


async def _events(data: bytes, size: int) -> list[str]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    return [event async for event in event_data(chunks())]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
async def test_events_survive_any_split(size: int, line_end: bytes) -> None:
    """Comments and other fields are skipped, data lines joined, the last event needs no blank line."""
    assert await _events(STREAM.replace(b"\r\n", line_end), size) == ["one", "two\n more é", "[DONE]"]


async def test_an_endless_event_is_refused() -> None:
    """Memory is bounded, whatever is sent."""
    with pytest.raises(Busy, match="too large"):
        await _events(b"data: " + b"x" * (MAX_EVENT_CHARS + 1), 65536)
