"""OpenAI's usage blocks as tokens in classes that do not overlap."""

import math
from collections.abc import Mapping
from typing import Any

from services.contracts.events import MAX_TOKENS_PER_CALL, TokenUsage

_CHARS_PER_TOKEN = 4
"""Of English text under the usual tokenizers; an estimate is flagged as one."""


def token_usage(usage: Mapping[str, Any]) -> TokenUsage | None:
    """The tokens that a `usage` block tells, or None when it does not tell them.

    ``cached_tokens`` (and ``cache_write_tokens``, which OpenRouter adds) are part of ``prompt_tokens``.
    ``reasoning_tokens`` are part of ``completion_tokens``, except where the total shows that they came on top (xAI).
    """
    prompt = _count(usage, "prompt_tokens")
    completion = _count(usage, "completion_tokens")
    if prompt is None or completion is None:
        return None
    details = _details(usage, "prompt_tokens_details")
    read = min(_count(details, "cached_tokens") or 0, prompt)
    written = min(_count(details, "cache_write_tokens") or 0, prompt - read)
    reasoning = _count(_details(usage, "completion_tokens_details"), "reasoning_tokens") or 0
    on_top = reasoning > completion or (
        reasoning > 0 and _count(usage, "total_tokens") == prompt + completion + reasoning
    )
    return TokenUsage(
        uncached_input=prompt - read - written,
        cache_read=read,
        cache_write=written,
        output=completion if on_top else completion - reasoning,
        reasoning=reasoning,
    )


def estimated_usage(prompt_chars: int, output_chars: int, reasoning_chars: int = 0) -> TokenUsage:
    """What a call with so much text used, about."""
    return TokenUsage(
        uncached_input=math.ceil(prompt_chars / _CHARS_PER_TOKEN),
        output=math.ceil(output_chars / _CHARS_PER_TOKEN),
        reasoning=math.ceil(reasoning_chars / _CHARS_PER_TOKEN),
    )


def _count(block: Mapping[str, Any], name: str) -> int | None:
    """A count that can be believed; an explicit 0 is one."""
    value = block.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS_PER_CALL:
        return None
    return value


def _details(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    details = usage.get(name)
    return details if isinstance(details, Mapping) else {}
