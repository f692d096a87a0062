"""Usage blocks."""

from typing import Any

import pytest

from services.contracts.events import TokenUsage
from services.inference.openai_usage import estimated_usage, token_usage


@pytest.mark.parametrize(
    ("block", "tokens"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 4}, TokenUsage(uncached_input=10, output=4)),
        ({"prompt_tokens": 10, "completion_tokens": 0}, TokenUsage(uncached_input=10)),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 20,
                "total_tokens": 120,
                "prompt_tokens_details": {"cached_tokens": 30},
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            TokenUsage(uncached_input=70, cache_read=30, output=15, reasoning=5),
        ),
        (
            {
                "prompt_tokens": 3329,
                "completion_tokens": 53,
                "prompt_tokens_details": {"cached_tokens": 3211, "cache_write_tokens": 115},
            },
            TokenUsage(uncached_input=3, cache_read=3211, cache_write=115, output=53),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 20,
                "total_tokens": 35,
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            TokenUsage(uncached_input=10, output=20, reasoning=5),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": None},
            TokenUsage(uncached_input=9, output=3),
        ),
    ],
    ids=["plain", "explicit zero", "cached and reasoning", "cache write", "reasoning on top", "null details"],
)
def test_classes_do_not_overlap(block: dict[str, Any], tokens: TokenUsage) -> None:
    """Every token is counted once."""
    assert token_usage(block) == tokens


@pytest.mark.parametrize("block", [{}, {"prompt_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": 1}])
def test_what_is_not_told_is_not_made_up(block: dict[str, Any]) -> None:
    """A block without both counts tells nothing."""
    assert token_usage(block) is None


def test_estimates_round_up() -> None:
    """A short text still costs something."""
    assert estimated_usage(9, 1) == TokenUsage(uncached_input=3, output=1)
