"""Rows of events that were told more than once."""

from uuid import UUID

from services.metering.audit.tellings import EventKey, SecondCharge, Telling, judged

ONE, OTHER = UUID(int=1), UUID(int=2)


def telling(event_id: UUID, sequence: int, *, hour: int = 0, version: int | None = None, here: bool = True) -> Telling:
    """A row."""
    return Telling(EventKey(hour, "acme", event_id), sequence, sequence if version is None else version, here)


def test_of_rows_with_the_same_key_one_counts() -> None:
    """The one with the highest version, in whatever order they come; the estimate that the truth replaced does not."""
    assert judged([telling(ONE, 7), telling(ONE, 3), telling(OTHER, 9, version=0), telling(OTHER, 4)]) == ({3, 9}, [])


def test_rows_under_two_keys_are_a_second_charge() -> None:
    """Named by the rows that count; what only repeats one of them is no charge of its own."""
    rows = [telling(ONE, 2), telling(ONE, 5, hour=3600), telling(ONE, 8), telling(OTHER, 6)]
    assert judged(rows) == ({2}, [SecondCharge(ONE, (5, 8))])


def test_sequences_of_a_stream_before_are_not_counted() -> None:
    """They stand for other events in the present one."""
    assert judged([telling(ONE, 3, here=False), telling(ONE, 4)]) == (set(), [])
