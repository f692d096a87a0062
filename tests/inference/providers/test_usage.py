"""Token usage, as the providers tell it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.events import TokenUsage
from services.inference.providers.chat import ChatRequest, Message, Tool, ToolCall
from services.inference.providers.usage import (
    UsageFormat,
    at_least,
    estimated_usage,
    prompt_bytes,
    read_usage,
    worst_case,
)

_NAMES = (
    "prompt_tokens completion_tokens prompt_tokens_details cached_tokens input_tokens output_tokens cache_creation "
    "promptTokenCount promptTokensDetails modality inputTokens outputTokens cacheDetails ttl reasoning_tokens"
)
FORMS: tuple[UsageFormat, ...] = ("chat", "responses", "messages", "gemini", "converse")


@pytest.mark.parametrize(
    ("form", "usage", "tokens"),
    [
        (
            "chat",
            {
                "prompt_tokens": 100,
                "completion_tokens": 20,
                "prompt_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            TokenUsage(uncached_input=60, cache_read=30, cache_write=10, output=15, reasoning=5),
        ),
        (
            "responses",
            {
                "input_tokens": 100,
                "output_tokens": 20,
                "input_tokens_details": {"cached_tokens": 30},
                "output_tokens_details": {"reasoning_tokens": 5},
            },
            TokenUsage(uncached_input=70, cache_read=30, output=15, reasoning=5),
        ),
        (
            "messages",
            {
                "input_tokens": 100,
                "cache_read_input_tokens": 30,
                "cache_creation_input_tokens": 10,
                "output_tokens": 20,
                "output_tokens_details": {"thinking_tokens": 5},
            },
            TokenUsage(uncached_input=100, cache_read=30, cache_write=10, output=15, reasoning=5),
        ),
        (
            "gemini",
            {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 30,
                "toolUsePromptTokenCount": 7,
                "candidatesTokenCount": 15,
                "thoughtsTokenCount": 5,
            },
            TokenUsage(uncached_input=77, cache_read=30, output=15, reasoning=5),
        ),
        (
            "converse",
            {"inputTokens": 100, "cacheReadInputTokens": 30, "cacheWriteInputTokens": 10, "outputTokens": 20},
            TokenUsage(uncached_input=100, cache_read=30, cache_write=10, output=20),
        ),
    ],
)
def test_every_format_becomes_disjoint_classes(form: UsageFormat, usage: dict[str, Any], tokens: TokenUsage) -> None:
    """Whatever contains what there."""
    reading = read_usage(usage, form)
    assert reading is not None
    assert (reading.tokens, reading.priced_apart) == (tokens, frozenset())


def test_reasoning_on_top_is_told_by_the_total_or_known() -> None:
    """As xAI counts."""
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}}
    on_top = TokenUsage(uncached_input=10, output=3, reasoning=2)
    by_total, known = read_usage(usage | {"total_tokens": 15}, "chat"), read_usage(usage, "chat", reasoning_on_top=True)
    assert by_total is not None
    assert known is not None
    assert by_total.tokens == known.tokens == on_top


def test_an_explicit_zero_is_told() -> None:
    """It is not the same as nothing."""
    reading = read_usage({"prompt_tokens": 0, "completion_tokens": 0}, "chat")
    assert reading is not None
    assert reading.tokens == TokenUsage()
    assert read_usage({}, "chat") is None


@pytest.mark.parametrize("count", [-1, "100", 1.5, True, None, 10**15, [], {}])
@pytest.mark.parametrize("form", FORMS)
def test_a_count_that_is_none_is_not_believed(form: UsageFormat, count: object) -> None:
    """Better an estimate."""
    usage = {
        "chat": {"prompt_tokens": count, "completion_tokens": 1},
        "responses": {"input_tokens": 1, "output_tokens": count},
        "messages": {"input_tokens": 1, "output_tokens": count},
        "gemini": {"promptTokenCount": count},
        "converse": {"inputTokens": count, "outputTokens": 1},
    }
    assert read_usage(usage[form], form) is None


@pytest.mark.parametrize(
    ("form", "usage", "apart"),
    [
        (
            "chat",
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"audio_tokens": 4}},
            "audio_input",
        ),
        (
            "messages",
            {"input_tokens": 1, "output_tokens": 1, "cache_creation": {"ephemeral_1h_input_tokens": 9}},
            "one_hour_cache_write",
        ),
        (
            "messages",
            {"input_tokens": 1, "output_tokens": 1, "server_tool_use": {"web_search_requests": 2}},
            "web_searches",
        ),
        (
            "gemini",
            {"promptTokenCount": 9, "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 9}]},
            "image_output",
        ),
        (
            "converse",
            {"inputTokens": 1, "outputTokens": 1, "cacheDetails": [{"ttl": "1h", "inputTokens": 5}]},
            "one_hour_cache_write",
        ),
    ],
)
def test_what_is_priced_apart_is_named(form: UsageFormat, usage: dict[str, Any], apart: str) -> None:
    """So that nobody takes the price of the tokens for the whole."""
    reading = read_usage(usage, form)
    assert reading is not None
    assert reading.priced_apart == {apart}


@settings(deadline=None)
@given(
    st.sampled_from(FORMS),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(_NAMES.split()),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ),
)
def test_nothing_breaks_it(form: UsageFormat, usage: object) -> None:
    """Whatever comes is a reading or none."""
    reading = read_usage(usage, form)
    assert reading is None or min(reading.tokens.model_dump().values()) >= 0


def test_the_worst_case_is_more_than_the_bytes() -> None:
    """A token of any tokenizer stands for a byte or more; schemas and the limit count too."""
    schema = {"type": "object", "properties": {"é": {"type": "string"}}}
    calls = (ToolCall("1", "f", '{"é": "x"}'),)
    request = ChatRequest(
        (Message("user", "日本語" * 10), Message("assistant", "", tool_calls=calls)),
        77,
        tools=(Tool("f", "does", schema),),
        response_schema=schema,
    )
    worst = worst_case(request)
    assert worst.output == 77
    assert worst.uncached_input > prompt_bytes(request) > 90


@settings(deadline=None)
@given(st.text(), st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 1000))
def test_an_estimate_is_never_worse_than_the_worst_case(text: str, written: int, thought: int, limit: int) -> None:
    """So that a reservation holds it, however many bytes a token of the answer stands for."""
    request = ChatRequest((Message("user", text),), limit)
    estimate, worst = (
        estimated_usage(prompt_bytes(request), written, thought, max_output_tokens=limit),
        worst_case(request),
    )
    assert estimate.uncached_input < worst.uncached_input
    assert estimate.output + estimate.reasoning <= worst.output


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        (
            TokenUsage(uncached_input=9, cache_read=3),
            TokenUsage(uncached_input=9, cache_read=3, output=20, reasoning=5),
        ),
        (TokenUsage(uncached_input=9, output=40), TokenUsage(uncached_input=9, output=35, reasoning=5)),
        (TokenUsage(cache_read=3, reasoning=8), TokenUsage(cache_read=3, output=17, reasoning=8)),
        (TokenUsage(output=1), TokenUsage(uncached_input=7, output=20, reasoning=5)),
    ],
    ids=["input", "thoughts not told apart", "thoughts", "no input"],
)
def test_an_estimate_is_never_below_what_was_told(told: TokenUsage, usage: TokenUsage) -> None:
    """Nor does it count thoughts twice; no prompt takes no tokens."""
    assert at_least(TokenUsage(uncached_input=7, output=20, reasoning=5), told) == usage
