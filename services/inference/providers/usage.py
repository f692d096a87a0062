"""Token usage: what providers tell, as classes that do not overlap; and what a call can use at most.

Providers disagree on what contains what. OpenAI's cached and written tokens are a part of the input, Anthropic's and
Bedrock's come on top of it; reasoning is a part of the output, but comes on top of it at Gemini and xAI. Facts from
the providers' API references and from genai-prices' extractors, which `benchmarks/usage.py` holds this against.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from services.contracts.events import MAX_TOKENS_PER_CALL, TokenUsage
from services.inference.providers.chat import ChatRequest

UsageFormat = Literal["chat", "responses", "messages", "gemini", "converse"]
"""OpenAI's chat completions and responses, Anthropic's messages, Gemini's generateContent, Bedrock's converse."""

REASONING_ON_TOP = frozenset({"x-ai"})
"""Providers of chat completions whose completion tokens are without the reasoning."""

_BYTES_PER_TOKEN = 4
"""Of English text under the usual tokenizers; an estimate is flagged as one."""
_MESSAGE_OVERHEAD = 32
_TOOL_OVERHEAD = 64
_REQUEST_OVERHEAD = 64
_PREAMBLE = 1024
"""Anthropic's own instructions for tools and output formats take up to some 800 tokens."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a usage block says."""

    tokens: TokenUsage
    priced_apart: frozenset[str] = frozenset()
    """What was used besides and has a price of its own that `tokens` cannot carry, such as audio or web searches."""


def read_usage(usage: object, form: UsageFormat, *, reasoning_on_top: bool = False) -> Reading | None:
    """The tokens that a `usage` block tells, or None when it does not tell them believably.

    An explicit 0 is told; a count that is negative, no integer or absurd is not.

    Args:
        usage: the block as parsed from JSON, whatever it is.
        form: whose it is.
        reasoning_on_top: whether chat completions are known to tell reasoning outside of the completion's tokens;
            otherwise only a total that says so makes it so.
    """
    if not isinstance(usage, Mapping):
        return None
    if form == "chat":
        return _chat(usage, reasoning_on_top)
    return {"responses": _responses, "messages": _messages, "gemini": _gemini, "converse": _converse}[form](usage)


def _chat(usage: Mapping[str, Any], on_top: bool) -> Reading | None:
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if prompt is None:
        return None
    if completion is None:
        # Embeddings write nothing and say so by leaving it out.
        if "completion_tokens" in usage or _count(usage, "total_tokens") != prompt:
            return None
        completion = 0
    inside, written = _block(usage, "prompt_tokens_details"), _block(usage, "completion_tokens_details")
    reasoning = _count(written, "reasoning_tokens") or 0
    on_top = on_top or reasoning > completion
    on_top = on_top or (reasoning > 0 and _count(usage, "total_tokens") == prompt + completion + reasoning)
    cached = _count(inside, "cached_tokens")
    if cached is None:
        cached = _count(usage, "prompt_cache_hit_tokens")
    tokens = _inclusive(
        prompt,
        cached or 0,
        _count(inside, "cache_write_tokens") or 0,
        completion + reasoning if on_top else completion,
        reasoning,
    )
    return Reading(tokens, _apart(audio_input=inside.get("audio_tokens"), audio_output=written.get("audio_tokens")))


def _responses(usage: Mapping[str, Any]) -> Reading | None:
    given, written = _count(usage, "input_tokens"), _count(usage, "output_tokens")
    if given is None or written is None:
        return None
    inside = _block(usage, "input_tokens_details")
    reasoning = _count(_block(usage, "output_tokens_details"), "reasoning_tokens") or 0
    cached = _count(inside, "cached_tokens") or 0
    return Reading(_inclusive(given, cached, _count(inside, "cache_write_tokens") or 0, written, reasoning))


def _messages(usage: Mapping[str, Any]) -> Reading | None:
    given, written = _count(usage, "input_tokens"), _count(usage, "output_tokens")
    if given is None or written is None:
        return None
    thinking = min(_count(_block(usage, "output_tokens_details"), "thinking_tokens") or 0, written)
    tokens = TokenUsage(
        uncached_input=given,
        cache_read=_count(usage, "cache_read_input_tokens") or 0,
        cache_write=_count(usage, "cache_creation_input_tokens") or 0,
        output=written - thinking,
        reasoning=thinking,
    )
    lasting = _block(usage, "cache_creation").get("ephemeral_1h_input_tokens")
    searches = _block(usage, "server_tool_use").get("web_search_requests")
    return Reading(tokens, _apart(one_hour_cache_write=lasting, web_searches=searches))


def _gemini(usage: Mapping[str, Any]) -> Reading | None:
    given = _count(usage, "promptTokenCount")
    if given is None:
        return None
    given += _count(usage, "toolUsePromptTokenCount") or 0
    reasoning = _count(usage, "thoughtsTokenCount") or 0
    written = (_count(usage, "candidatesTokenCount") or 0) + reasoning
    tokens = _inclusive(given, _count(usage, "cachedContentTokenCount") or 0, 0, written, reasoning)
    heard = _modalities(usage, "promptTokensDetails", "cacheTokensDetails", "toolUsePromptTokensDetails")
    shown = _modalities(usage, "candidatesTokensDetails")
    return Reading(
        tokens,
        _apart(
            audio_input=heard.get("AUDIO"),
            audio_output=shown.get("AUDIO"),
            image_output=shown.get("IMAGE"),
            video_output=shown.get("VIDEO"),
        ),
    )


def _converse(usage: Mapping[str, Any]) -> Reading | None:
    given, written = _count(usage, "inputTokens"), _count(usage, "outputTokens")
    if given is None or written is None:
        return None
    tokens = TokenUsage(
        uncached_input=given,
        cache_read=_count(usage, "cacheReadInputTokens") or 0,
        cache_write=_count(usage, "cacheWriteInputTokens") or 0,
        output=written,
    )
    details = usage.get("cacheDetails")
    lasting = sum(
        _count(detail, "inputTokens") or 0
        for detail in (details if isinstance(details, list) else ())
        if isinstance(detail, Mapping) and detail.get("ttl") == "1h"
    )
    return Reading(tokens, _apart(one_hour_cache_write=lasting))


def _inclusive(given: int, read: int, written_to_cache: int, output: int, reasoning: int) -> TokenUsage:
    """Where the parts are inside of the whole; a part larger than its whole is cut to it."""
    read = min(read, given)
    written_to_cache = min(written_to_cache, given - read)
    reasoning = min(reasoning, output)
    return TokenUsage(
        uncached_input=given - read - written_to_cache,
        cache_read=read,
        cache_write=written_to_cache,
        output=output - reasoning,
        reasoning=reasoning,
    )


def _count(block: Mapping[str, Any], name: str) -> int | None:
    """A count that can be believed; an explicit 0 is one."""
    value = block.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS_PER_CALL:
        return None
    return value


def _block(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    block = usage.get(name)
    return block if isinstance(block, Mapping) else {}


def _modalities(usage: Mapping[str, Any], *names: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        details = usage.get(name)
        for detail in details if isinstance(details, list) else ():
            if isinstance(detail, Mapping) and isinstance(modality := detail.get("modality"), str):
                found[modality] = found.get(modality, 0) + (_count(detail, "tokenCount") or 0)
    return found


def _apart(**counts: object) -> frozenset[str]:
    return frozenset(name for name, count in counts.items() if isinstance(count, int) and count > 0)


def prompt_bytes(request: ChatRequest) -> int:
    """How many bytes of UTF-8 the request brings, without any overhead."""
    size = 0
    for message in request.messages:
        size += _utf8(message.content)
        for call in message.tool_calls:
            size += _utf8(call.id) + _utf8(call.name) + _utf8(call.arguments)
    for tool in request.tools:
        size += _utf8(tool.name) + _utf8(tool.description) + len(msgspec.json.encode(tool.parameters))
    if request.response_schema is not None:
        size += len(msgspec.json.encode(request.response_schema))
    return size


def worst_case(request: ChatRequest, further_bytes: int = 0) -> TokenUsage:
    """More tokens than one call can use, under any tokenizer whose tokens stand for a byte or more.

    `further_bytes` are what an endpoint adds to every request. Schemas count twice, as providers may render them with
    more white space. The output's limit bounds the reasoning too.
    """
    schemas = sum(len(msgspec.json.encode(tool.parameters)) for tool in request.tools)
    overhead = _REQUEST_OVERHEAD + _MESSAGE_OVERHEAD * len(request.messages) + _TOOL_OVERHEAD * len(request.tools)
    if request.response_schema is not None:
        schemas += len(msgspec.json.encode(request.response_schema))
    if request.tools or request.response_schema is not None:
        overhead += _PREAMBLE
    return TokenUsage(
        uncached_input=min(prompt_bytes(request) + schemas + overhead + further_bytes, MAX_TOKENS_PER_CALL),
        output=min(request.max_output_tokens, MAX_TOKENS_PER_CALL),
    )


def estimated_usage(
    given_bytes: int, output_bytes: int, reasoning_bytes: int = 0, *, max_output_tokens: int = MAX_TOKENS_PER_CALL
) -> TokenUsage:
    """What a call with so much text used, about, and never more than its limit let it: that much was reserved."""
    reasoning = min(math.ceil(reasoning_bytes / _BYTES_PER_TOKEN), max_output_tokens)
    return TokenUsage(
        uncached_input=math.ceil(given_bytes / _BYTES_PER_TOKEN),
        output=min(math.ceil(output_bytes / _BYTES_PER_TOKEN), max_output_tokens - reasoning),
        reasoning=reasoning,
    )


def at_least(estimate: TokenUsage, told: TokenUsage) -> TokenUsage:
    """The estimate where the provider told some of it, before the end: never less than it told.

    The input is known from then on, but where none is told. Output that was told may hold thoughts that are not told
    apart.
    """
    reasoning = max(told.reasoning, estimate.reasoning)
    output = max(told.output + told.reasoning, estimate.output + estimate.reasoning) - reasoning
    known = told.uncached_input or told.cache_read or told.cache_write
    given = {} if known else {"uncached_input": estimate.uncached_input}
    return told.model_copy(update={**given, "output": output, "reasoning": reasoning})


def _utf8(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))
