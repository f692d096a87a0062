"""What the upstream says and bills."""

import math

from tests.upstream.answers import Reply, Tokens, alternatives, answer, billed
from tests.upstream.asked import Asked

ASKED = Asked("openai", "m", stream=False, max_output_tokens=None, input_tokens=9, last_words="?")


def test_counted_tokens_are_those_sent_and_said() -> None:
    """And stay under the caller's limit."""
    limited = Asked("openai", "m", stream=False, max_output_tokens=4, input_tokens=9, last_words="?")
    reply = Reply(tokens="counted")
    assert answer(reply, ASKED, "i", 1).tokens == Tokens(uncached_input=9, output=6)
    assert answer(reply, limited, "i", 1).tokens == Tokens(uncached_input=9, output=4)


def test_half_an_answer_is_billed_by_half() -> None:
    """The input from the start, the thinking from the first piece on, the output in proportion."""
    whole = Tokens(uncached_input=70, cache_read=30, output=15, reasoning=5)
    assert billed(whole, 0, 6) == Tokens(uncached_input=70, cache_read=30)
    assert billed(whole, 3, 6) == Tokens(uncached_input=70, cache_read=30, output=7, reasoning=5)
    assert billed(whole, 6, 6) == whole


def test_alternatives_share_what_probability_is_left() -> None:
    """Together they are never more than certain."""
    told = alternatives("a", math.log(0.6), 4)
    assert [round(math.exp(logprob), 4) for _, logprob in told] == [0.6, 0.2, 0.1, 0.05]
    assert alternatives("a", -0.1, 0) == []
