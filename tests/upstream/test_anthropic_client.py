"""Anthropic's own client takes the upstream for the real thing."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message, MessageParam, OutputConfigParam, ToolParam

from tests.upstream.answers import Reply, Tokens
from tests.upstream.misbehaviour import Conduct, Fault
from tests.upstream.server import Upstream, upstream

ASK: list[MessageParam] = [{"role": "user", "content": "?"}]
TEXT = "The answer is 42 [1]."
LOOK_UP: ToolParam = {
    "name": "look_up",
    "input_schema": {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]},
}


@pytest.fixture
async def server() -> AsyncIterator[Upstream]:
    """An upstream that behaves and bills every class of tokens."""
    async with upstream() as running:
        running.script.reply = Reply(
            tokens=Tokens(uncached_input=50, cache_read=30, cache_write=20, output=15, reasoning=5)
        )
        yield running


@pytest.fixture
async def client(server: Upstream) -> AsyncIterator[AsyncAnthropic]:
    """The official client, which does not try again."""
    async with AsyncAnthropic(base_url=server.root, api_key="sk-ant-1", max_retries=0, timeout=5) as running:
        yield running


async def test_a_message_is_whole(client: AsyncAnthropic) -> None:
    """Text, reason and usage in its classes arrive as the client's own types."""
    message = await client.messages.create(model="m", max_tokens=9, messages=ASK)
    (block,) = message.content
    assert block.type == "text"
    assert (message.model, block.text, message.stop_reason) == ("m", TEXT, "end_turn")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens) == (50, 20, 30)
    assert usage.output_tokens == 20
    assert usage.output_tokens_details is not None
    assert usage.output_tokens_details.thinking_tokens == 5


async def test_a_stream_adds_up_to_the_message(client: AsyncAnthropic) -> None:
    """The client's own accumulator makes the message of the events, its usage included."""
    async with client.messages.stream(model="m", max_tokens=9, messages=ASK) as stream:
        pieces = [piece async for piece in stream.text_stream]
        message = await stream.get_final_message()
    assert len(pieces) == 6
    assert "".join(pieces) == TEXT
    assert (message.stop_reason, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (
        "end_turn",
        30,
        20,
    )


async def test_thinking_comes_before_the_text(client: AsyncAnthropic) -> None:
    """In a signed block of its own, streamed too."""
    async with client.messages.stream(
        model="m", max_tokens=2048, messages=ASK, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        message = await stream.get_final_message()
    thinking, text = message.content
    assert thinking.type == "thinking"
    assert (thinking.thinking, bool(thinking.signature)) == ("It is 42.", True)
    assert text.type == "text"
    assert text.text == TEXT


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_is_called_and_its_result_answered(client: AsyncAnthropic, streamed: bool) -> None:
    """The input obeys the tool's schema; after the result comes text."""
    message: Message
    if streamed:
        async with client.messages.stream(model="m", max_tokens=9, messages=ASK, tools=[LOOK_UP]) as stream:
            message = await stream.get_final_message()
    else:
        message = await client.messages.create(model="m", max_tokens=9, messages=ASK, tools=[LOOK_UP])
    (block,) = message.content
    assert block.type == "tool_use"
    assert (message.stop_reason, block.name, block.input) == ("tool_use", "look_up", {"year": 1})
    result: MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "1999"}],
    }
    turns: list[MessageParam] = [*ASK, {"role": "assistant", "content": message.content}, result]
    after = await client.messages.create(model="m", max_tokens=9, messages=turns, tools=[LOOK_UP])
    assert after.stop_reason == "end_turn"


async def test_an_answer_obeys_its_schema(client: AsyncAnthropic) -> None:
    """The text is JSON that the schema accepts."""
    verdict: OutputConfigParam = {
        "format": {"type": "json_schema", "schema": {"type": "object", "properties": {"right": {"type": "boolean"}}}}
    }
    message = await client.messages.create(model="m", max_tokens=9, messages=ASK, output_config=verdict)
    (block,) = message.content
    assert block.type == "text"
    assert json.loads(block.text) == {"right": True}


async def test_models_are_listed(client: AsyncAnthropic) -> None:
    """As the client's own type."""
    assert [model.id async for model in client.models.list()] == ["small", "large"]


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
async def test_a_refusal_is_the_clients_own_error(
    server: Upstream, client: AsyncAnthropic, status: int, kind: type[anthropic.APIStatusError], told: str
) -> None:
    """With the type that Anthropic gives to its status, and the call's identity."""
    server.script.usual = Conduct(status=status)
    with pytest.raises(kind) as refusal:
        await client.messages.create(model="m", max_tokens=9, messages=ASK)
    assert (refusal.value.type, refusal.value.request_id) == (told, server.ledger.calls[0].id)


async def test_the_client_tries_again(server: Upstream) -> None:
    """An overloaded upstream is asked again after what it asks for."""
    server.script.upcoming.extend([Conduct(status=529, retry_after_s=0.05), Conduct(fault="reset")])
    async with AsyncAnthropic(base_url=server.root, api_key="k", max_retries=2) as client:
        message = await client.messages.create(model="m", max_tokens=9, messages=ASK)
    assert message.stop_reason == "end_turn"
    assert [call.status for call in server.ledger.calls] == [529, None, 200]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": ASK},
        {"messages": [{"role": "system", "content": "?"}], "max_tokens": 9},
        {"messages": ASK, "max_tokens": 9, "tool_choice": "auto"},
        {"messages": ASK, "max_tokens": 9, "tools": [{"type": "function", "function": {"name": "look_up"}}]},
    ],
)
async def test_what_the_api_forbids_is_refused(client: AsyncAnthropic, body: dict[str, Any]) -> None:
    """A limit is required, a system prompt is not the first message, tools and their choice have Anthropic's form."""
    with pytest.raises(anthropic.BadRequestError):
        await client.post("/v1/messages", body={"model": "m", **body}, cast_to=object)


async def test_an_error_in_a_stream_is_raised(server: Upstream, client: AsyncAnthropic) -> None:
    """After the text that came before it."""
    server.script.usual = Conduct(fault="error_in_stream")
    async with client.messages.stream(model="m", max_tokens=9, messages=ASK) as stream:
        pieces = [await anext(stream.text_stream) for _ in range(3)]
        with pytest.raises(anthropic.APIStatusError) as failure:
            await anext(stream.text_stream)
    assert (pieces, failure.value.type) == (["The", " answer", " is"], "overloaded_error")


@pytest.mark.parametrize("fault", ["crlf_and_comments", "no_done", "drip", "wrong_content_type", "early_usage"])
async def test_an_odd_stream_is_read_in_full(server: Upstream, client: AsyncAnthropic, fault: Fault) -> None:
    """What the reference client accepts, ours has to."""
    server.script.usual = Conduct(fault=fault)
    async with client.messages.stream(model="m", max_tokens=9, messages=ASK) as stream:
        assert "".join([piece async for piece in stream.text_stream]) == TEXT


async def test_filtered_content_says_so(server: Upstream, client: AsyncAnthropic) -> None:
    """By its reason to stop."""
    server.script.usual = Conduct(fault="content_filter")
    message = await client.messages.create(model="m", max_tokens=9, messages=ASK)
    assert message.stop_reason == "refusal"
