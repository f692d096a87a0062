"""Which texts the model takes next."""

from hypothesis import given
from hypothesis import strategies as st

from services.knowledge.batching import LOOK_AHEAD, take

LENGTHS = st.lists(st.integers(min_value=0, max_value=5000), max_size=300)


@given(LENGTHS)
def test_the_oldest_text_is_always_taken(lengths: list[int]) -> None:
    """No text waits for ever, however long it is."""
    batch = take(lengths, window_tokens=254, batch_tokens=1024)
    assert batch[:1] == [0][: len(lengths)]
    assert len(set(batch)) == len(batch)
    assert all(position < min(len(lengths), LOOK_AHEAD) for position in batch)


@given(LENGTHS)
def test_a_padded_batch_stays_within_its_tokens(lengths: list[int]) -> None:
    """A batch of more than one text is as small as was asked."""
    batch = take(lengths, window_tokens=254, batch_tokens=1024)
    widest = max((min(lengths[i] // 3, 254) + 2 for i in batch), default=0)
    assert len(batch) <= 1 or widest * len(batch) <= 1024


def test_texts_of_like_length_go_together() -> None:
    """Padding is not computed: long texts wait for the next batch."""
    assert sorted(take([30, 900, 33, 900, 31], window_tokens=254, batch_tokens=60)) == [0, 2, 4]


def test_padding_dearer_than_a_batch_is_not_computed() -> None:
    """Four short sentences do not wait in the shape of a fifth, long one."""
    assert sorted(take([60, 60, 60, 60, 600], window_tokens=254, batch_tokens=1024)) == [0, 1, 2, 3]
    assert sorted(take([60, 60, 60, 60, 90], window_tokens=254, batch_tokens=1024)) == [0, 1, 2, 3, 4]
