"""Which texts the model takes next."""

from hypothesis import given
from hypothesis import strategies as st

from services.knowledge.batching import LOOK_AHEAD, take

TOKENS = st.lists(st.integers(min_value=2, max_value=256), max_size=300)


@given(TOKENS)
def test_the_oldest_text_is_always_taken(tokens: list[int]) -> None:
    """No text waits for ever, however long it is."""
    batch = take(tokens, batch_tokens=1024)
    assert batch[:1] == [0][: len(tokens)]
    assert len(set(batch)) == len(batch)
    assert all(position < min(len(tokens), LOOK_AHEAD) for position in batch)


@given(TOKENS)
def test_a_padded_batch_stays_within_its_tokens(tokens: list[int]) -> None:
    """A batch of more than one text is as small as was asked."""
    batch = take(tokens, batch_tokens=1024)
    widest = max((tokens[i] for i in batch), default=0)
    assert len(batch) <= 1 or widest * len(batch) <= 1024


def test_texts_of_like_length_go_together() -> None:
    """Padding is not computed: long texts wait for the next batch."""
    assert sorted(take([10, 250, 12, 250, 11], batch_tokens=60)) == [0, 2, 4]


def test_padding_dearer_than_a_batch_is_not_computed() -> None:
    """Four short sentences do not wait in the shape of a fifth, long one."""
    assert sorted(take([20, 20, 20, 20, 200], batch_tokens=1024)) == [0, 1, 2, 3]
    assert sorted(take([20, 20, 20, 20, 30], batch_tokens=1024)) == [0, 1, 2, 3, 4]
