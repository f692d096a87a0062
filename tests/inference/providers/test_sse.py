"""Server-sent events, wherever the stream is split."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.failures import Busy
from services.inference.providers.sse import MAX_EVENT_BYTES, EventReader

STREAM = (
    b": comment\r\n"
    b"data: one\r\n\r\n"
    b"event: named\ndata:two\nid: 7\n\n"
    b"data: three\rdata: more\r\r"
    b"data\n\n\n"
    b'data: {"a": "\xc3\xa9"}\n\n'
    b"data: last"
)
EVENTS = [b"one", b"two", b"three\nmore", b'{"a": "\xc3\xa9"}', b"last"]


def _read(*chunks: bytes) -> list[bytes]:
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)] + reader.end()


def test_all_line_ends_comments_and_fields_are_understood() -> None:
    """Also the event that the stream ends in."""
    assert _read(STREAM) == EVENTS


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_it_does_not_matter_where_the_stream_is_split(cuts: list[int]) -> None:
    """Even in the middle of a character or of a line's end."""
    edges = [0, *sorted(cuts), len(STREAM)]
    assert _read(*(STREAM[a:b] for a, b in pairwise(edges) if a < b)) == EVENTS


def test_byte_by_byte_is_the_same() -> None:
    """As slow networks do it."""
    assert _read(*(bytes([byte]) for byte in STREAM)) == EVENTS


def test_an_event_is_told_at_once() -> None:
    """Not when the next one comes."""
    assert EventReader().feed(b"data: now\n\n") == [b"now"]


def for_ever(reader: EventReader, chunk: bytes) -> None:
    """Feeds some more."""
    for _ in range(3):
        reader.feed(chunk)


@pytest.mark.parametrize("chunk", [b"x" * 65536, b"data: " + b"x" * 65536 + b"\n"])
def test_an_event_without_end_is_refused(chunk: bytes) -> None:
    """Memory is bounded."""
    reader = EventReader()
    for _ in range(MAX_EVENT_BYTES // len(chunk)):
        reader.feed(chunk)
    with pytest.raises(Busy, match="too large"):
        for_ever(reader, chunk)


def test_many_events_are_no_large_event() -> None:
    """The bound is for each."""
    reader = EventReader()
    told = sum(len(reader.feed(b"data: " + b"x" * 1000 + b"\n\n")) for _ in range(2000))
    assert told == 2000
