"""Answers as they come, with the oddities of servers that call themselves compatible."""

import json
from typing import Any

import pytest

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Failure, Rejected
from services.inference.providers.anthropic import AnthropicDialect, AnthropicReply
from services.inference.providers.chat import ChatRequest, Completion, FinishReason, Message, Tool, ToolCall
from services.inference.providers.openai import OpenAIDialect, OpenAIReply
from services.inference.providers.settings import EndpointSettings

ASK = (Message("user", "?"),)


def _chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}).encode()


def _read(*events: bytes) -> Completion:
    reply = OpenAIReply()
    for event in events:
        reply.event(event)
    return reply.completion()


def _anthropic(*events: dict[str, Any]) -> AnthropicReply:
    reply = AnthropicReply()
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}
    for event in (start, {"type": "content_block_delta", "delta": {"text": "42"}}, *events):
        reply.event(json.dumps(event).encode())
    return reply


def _stopped(usage: object = None, reason: str | None = "end_turn") -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


CALL = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]}


def test_calls_that_end_in_stop_are_calls() -> None:
    """As OpenAI says when a tool was forced."""
    told = _read(_chunk(CALL), _chunk(finish="stop"))
    assert told.finish_reason is FinishReason.TOOL_CALLS


def test_calls_count_as_written_until_the_usage_comes() -> None:
    """Their names and their arguments."""
    reply = OpenAIReply()
    reply.event(_chunk(CALL))
    assert (reply.begun, reply.output_bytes) == (True, 3)


def test_thoughts_are_no_text_but_a_sign_of_life() -> None:
    """They are counted, should the usage never come."""
    reply = OpenAIReply()
    assert reply.event(_chunk({"reasoning_content": "hm"})) == ""
    assert (reply.begun, reply.reasoning_bytes) == (True, 2)


def test_text_in_parts_is_text() -> None:
    """As Mistral's reasoning models write."""
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "42"}]
    assert _read(_chunk({"content": parts}, "stop")).text == "42"


def test_a_refusal_is_filtered_content() -> None:
    """OpenAI has a field of its own for it."""
    assert _read(_chunk({"refusal": "no"}, "stop")).finish_reason is FinishReason.CONTENT_FILTER


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (_chunk({"content": "4"}, "error"), "PROVIDER_ERROR"),
        (_chunk({"content": "4"}, "insufficient_system_resource"), "PROVIDER_ERROR"),
        (_chunk({"content": "4"}), "PROVIDER_CUT"),
        (_chunk({"content": "4"}, ""), "PROVIDER_CUT"),
        (_chunk({}, "stop"), "PROVIDER_EMPTY"),
    ],
)
def test_an_answer_that_did_not_come_to_its_end_is_none(event: bytes, reason: str) -> None:
    """Another deployment may do better."""
    with pytest.raises(Busy) as caught:
        _read(event)
    assert caught.value.reason == reason


def test_all_tokens_for_thoughts_is_an_answer_cut_short() -> None:
    """To ask elsewhere would end the same."""
    assert _read(_chunk({"reasoning": "hm"}, "length")) == Completion("", FinishReason.LENGTH)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b'{"choices": 1}', b'{"choices": [{"delta": {"content": 5}}]}', b"\xff", b"[" * 99_999],
)
@pytest.mark.parametrize("reply", [OpenAIReply, AnthropicReply])
def test_what_is_no_event_says_so_and_no_more(data: bytes, reply: type[OpenAIReply | AnthropicReply]) -> None:
    """Nothing of it is told."""
    with pytest.raises(Failure, match="something that is not a"):
        reply().event(data)


def test_a_running_count_is_not_final() -> None:
    """Gemini's endpoint tells usage with every chunk."""
    reply = OpenAIReply()
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    reply.event(_chunk({"content": "4"}, usage=usage))
    assert not reply.usage_final
    reply.event(_chunk({"content": "2"}, "stop", usage=usage | {"completion_tokens": 2}))
    assert reply.usage_final
    assert reply.usage is not None
    assert reply.usage.tokens.output == 2


def test_an_empty_reason_to_finish_is_none() -> None:
    """Some servers send one with every chunk; a count beside it is a running one."""
    reply = OpenAIReply()
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    reply.event(_chunk({"content": "4"}, "", usage=usage))
    assert not reply.usage_final
    reply.event(_chunk({}, "stop"))
    assert not reply.usage_final
    reply.event(json.dumps({"choices": [], "usage": usage}).encode())
    assert reply.usage_final


@pytest.mark.parametrize("reason", [None, "", "stop"])
def test_an_answer_in_one_piece_is_whole(reason: str | None) -> None:
    """Its end is the body's, and so is that of its usage."""
    reply = OpenAIReply()
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    choice = {"message": {"content": "42"}, "finish_reason": reason}
    assert reply.whole(json.dumps({"choices": [choice], "usage": usage}).encode()) == "42"
    assert reply.completion() == Completion("42", FinishReason.STOP)
    assert reply.usage_final


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": 10}, {"output_tokens": None}, {"output_tokens": -5}])
def test_output_told_as_a_message_starts_is_not_final(usage: object) -> None:
    """Where it is not told as the message stops, or not believably."""
    reply = _anthropic(_stopped(usage))
    assert reply.usage is not None
    assert (reply.usage.tokens, reply.usage_final) == (TokenUsage(uncached_input=10, output=1), False)


def test_output_told_before_the_message_stops_is_not_final() -> None:
    """More may come; where it comes, the last count is."""
    reply = _anthropic(_stopped({"output_tokens": 2}, reason=None))
    assert not reply.usage_final
    reply.event(json.dumps(_stopped({"output_tokens": 3})).encode())
    assert reply.usage is not None
    assert (reply.usage.tokens.output, reply.usage_final) == (3, True)


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, False),
        ({"type": "array", "items": {"type": "object"}}, False),
        ({"type": "object", "properties": ["a"], "required": [[]], "additionalProperties": False}, False),
        ({"properties": {"a": {}}, "required": 5, "additionalProperties": False}, False),
    ],
)
def test_strict_is_asked_where_openai_takes_it(schema: dict[str, Any], strict: bool) -> None:
    """It refuses other schemas in strict mode."""
    dialect = OpenAIDialect(EndpointSettings(base_url="http://x", model="m"))
    body = dialect.body(ChatRequest(ASK, 5, response_schema=schema))
    assert body["response_format"]["json_schema"]["strict"] is strict


@pytest.mark.parametrize(
    ("choice", "openai", "anthropic"),
    [
        ("auto", "auto", {"type": "auto"}),
        ("none", "none", {"type": "none"}),
        ("required", "required", {"type": "any"}),
        ("f", {"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}),
    ],
)
def test_the_choice_of_a_tool_is_passed_on(choice: str, openai: object, anthropic: object) -> None:
    """In each protocol's words."""
    request = ChatRequest(ASK, 5, tools=(Tool("f", "", {}),), tool_choice=choice)
    settings = EndpointSettings(base_url="http://x", model="m")
    assert OpenAIDialect(settings).body(request)["tool_choice"] == openai
    assert AnthropicDialect(settings).body(request)["tool_choice"] == anthropic


@pytest.mark.parametrize(
    ("callers", "own", "fixed", "sent"),
    [
        (None, None, {}, "none"),
        (None, 0.7, {}, 0.7),
        (None, 0.7, {"temperature": 1}, 1),
        (None, 0.7, {"temperature": None}, "none"),
        (None, None, {"temperature": 1}, 1),
        (0.2, 0.7, {"temperature": 1}, 0.2),
        (0.2, None, {"temperature": None}, 0.2),
        (0.0, 0.7, {}, 0.0),
    ],
)
@pytest.mark.parametrize("dialect", [OpenAIDialect, AnthropicDialect])
def test_the_callers_temperature_goes_before_the_endpoints_and_that_before_ours(
    dialect: type[OpenAIDialect | AnthropicDialect],
    callers: float | None,
    own: float | None,
    fixed: dict[str, Any],
    sent: object,
) -> None:
    """An endpoint that says null is not asked for any, as some models refuse whatever is asked for."""
    settings = EndpointSettings(base_url="http://x", model="m", body=fixed)
    body = dialect(settings).body(ChatRequest(ASK, 5, temperature=callers, own_temperature=own))
    assert body.get("temperature", "none") == sent


def test_anthropics_turns_are_built_from_ours() -> None:
    """The system's words come first, results of parallel calls in one turn of the user."""
    calls = (ToolCall("1", "f", "{}"), ToolCall("2", "f", '{"x": 1}'))
    results = (Message("tool", "a", tool_call_id="1"), Message("tool", "b", tool_call_id="2"))
    messages = (Message("system", "Be brief."), *ASK, Message("assistant", "", calls), *results)
    body = AnthropicDialect(EndpointSettings(base_url="http://x", model="m")).body(ChatRequest(messages, 5))
    assert body["system"] == "Be brief."
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert [block["tool_use_id"] for block in body["messages"][2]["content"]] == ["1", "2"]


@pytest.mark.parametrize("arguments", ["", "[1]", "{'a': 1}", "{"])
def test_arguments_that_are_no_json_object_are_refused(arguments: str) -> None:
    """Anthropic takes objects only."""
    messages = (*ASK, Message("assistant", "", (ToolCall("1", "f", arguments),)))
    with pytest.raises(Rejected, match="JSON object"):
        AnthropicDialect(EndpointSettings(base_url="http://x", model="m")).body(ChatRequest(messages, 5))


def test_a_schema_by_a_forced_tool_leaves_no_room_for_tools() -> None:
    """Said before anything is asked."""
    settings = EndpointSettings(base_url="http://x", model="m", structured_output="tool")
    request = ChatRequest(ASK, 5, tools=(Tool("f", "", {}),), response_schema={"type": "object"})
    with pytest.raises(Rejected, match="leave the tools"):
        AnthropicDialect(settings).body(request)
