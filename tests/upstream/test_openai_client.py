"""OpenAI's own client takes the upstream for the real thing."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.shared_params import ResponseFormatJSONSchema

from tests.upstream.misbehaviour import Conduct, Fault
from tests.upstream.server import Upstream, upstream

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "?"}]
TEXT = "The answer is 42 [1]."
LOOK_UP: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"year": {"type": "integer", "minimum": 1900}, "exact": {"type": "boolean"}},
            "required": ["year", "exact"],
        },
    },
}
VERDICT: ResponseFormatJSONSchema = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {
            "type": "object",
            "properties": {"kind": {"$ref": "#/$defs/kind"}, "parts": {"type": "array", "items": {"type": "string"}}},
            "required": ["kind", "parts"],
            "$defs": {"kind": {"enum": ["yes", "no"]}},
        },
    },
}


@pytest.fixture
async def server() -> AsyncIterator[Upstream]:
    """An upstream that behaves."""
    async with upstream() as running:
        yield running


@pytest.fixture
async def client(server: Upstream) -> AsyncIterator[AsyncOpenAI]:
    """The official client, which does not try again."""
    async with AsyncOpenAI(base_url=server.url, api_key="sk-1", max_retries=0, timeout=5) as running:
        yield running


async def test_a_completion_is_whole(client: AsyncOpenAI) -> None:
    """Text, reason and usage with its details arrive as the client's own types."""
    completion = await client.chat.completions.create(model="m", messages=ASK)
    (choice,) = completion.choices
    assert (completion.model, choice.message.content, choice.finish_reason) == ("m", TEXT, "stop")
    usage = completion.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 20, 120)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 30
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 5


async def test_a_stream_brings_text_log_probabilities_and_usage(client: AsyncOpenAI) -> None:
    """In pieces, the usage in a last chunk without choices."""
    stream = await client.chat.completions.create(
        model="m", messages=ASK, stream=True, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == TEXT
    logprobs = [choice.logprobs.content for choice in choices if choice.logprobs]
    assert len(logprobs) == 6
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_stream_tells_usage_only_when_asked(client: AsyncOpenAI) -> None:
    """As the API does without stream_options."""
    stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_alternatives_are_told_with_their_probabilities(client: AsyncOpenAI) -> None:
    """As many as asked for, the token itself first, less likely from place to place."""
    completion = await client.chat.completions.create(model="m", messages=ASK, logprobs=True, top_logprobs=3)
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first = logprobs.content[0]
    assert (first.token, first.logprob) == ("The", -0.1)
    assert [alternative.token for alternative in first.top_logprobs] == ["The", "The~1", "The~2"]
    probabilities = [alternative.logprob for alternative in first.top_logprobs]
    assert probabilities == sorted(probabilities, reverse=True)


async def test_a_tool_is_called_and_its_result_answered(client: AsyncOpenAI) -> None:
    """The arguments obey the tool's schema; after the result comes text."""
    completion = await client.chat.completions.create(model="m", messages=ASK, tools=[LOOK_UP])
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("look_up", {"year": 1900, "exact": True})
    result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": call.id, "content": "1999"}
    after = await client.chat.completions.create(model="m", messages=[*ASK, result], tools=[LOOK_UP])
    assert after.choices[0].message.content == TEXT


async def test_a_streamed_tool_call_adds_up(client: AsyncOpenAI) -> None:
    """The client's own accumulator makes the call of the pieces."""
    async with client.chat.completions.stream(model="m", messages=ASK, tools=[LOOK_UP]) as stream:
        completion = await stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls
    assert calls is not None
    assert json.loads(calls[0].function.arguments) == {"year": 1900, "exact": True}


async def test_an_answer_obeys_its_schema(client: AsyncOpenAI) -> None:
    """Streamed or not, the text is JSON that the schema accepts."""
    completion = await client.chat.completions.create(model="m", messages=ASK, response_format=VERDICT)
    assert json.loads(completion.choices[0].message.content or "") == {"kind": "yes", "parts": ["answer"]}


async def test_several_choices_are_told_apart(client: AsyncOpenAI) -> None:
    """One for each that is asked for."""
    completion = await client.chat.completions.create(model="m", messages=ASK, n=3)
    assert [(choice.index, choice.message.content) for choice in completion.choices] == [(i, TEXT) for i in range(3)]


async def test_the_limit_cuts_the_answer(client: AsyncOpenAI) -> None:
    """And says so."""
    completion = await client.chat.completions.create(model="m", messages=ASK, max_completion_tokens=2)
    choice = completion.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("The answer", "length")


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    """As the client's own type."""
    assert [model.id async for model in client.models.list()] == ["small", "large"]


async def test_azures_paths_name_the_model(server: Upstream) -> None:
    """The deployment in the path is the model."""
    async with AsyncAzureOpenAI(azure_endpoint=server.root, api_key="k", api_version="2024-10-21") as client:
        completion = await client.chat.completions.create(model="mine", messages=ASK)
    assert completion.model == "mine"
    assert server.ledger.calls[0].model == "mine"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_a_refusal_is_the_clients_own_error(
    server: Upstream, client: AsyncOpenAI, status: int, kind: type[openai.APIStatusError]
) -> None:
    """With its code and the call's identity."""
    server.script.usual = Conduct(status=status)
    with pytest.raises(kind) as refusal:
        await client.chat.completions.create(model="m", messages=ASK)
    assert (refusal.value.code, refusal.value.request_id) == ("told_to", server.ledger.calls[0].id)


async def test_the_client_tries_again_after_what_the_server_asks(server: Upstream) -> None:
    """Two refusals, in both forms of Retry-After, and then the answer."""
    server.script.upcoming.extend(
        [
            Conduct(status=429, retry_after_s=0.05),
            Conduct(status=503, retry_after_s=1, retry_after_form="date"),
        ]
    )
    async with AsyncOpenAI(base_url=server.url, api_key="k", max_retries=2) as client:
        completion = await client.chat.completions.create(model="m", messages=ASK)
    assert completion.choices[0].message.content == TEXT
    assert [call.status for call in server.ledger.calls] == [429, 503, 200]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [{"role": "robot", "content": "?"}]},
        {"messages": ASK, "max_completion_tokens": 0},
        {"messages": ASK, "top_logprobs": 2},
        {"messages": ASK, "stream_options": {"include_usage": True}},
        {"messages": ASK, "response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"messages": ASK, "response_format": {"type": "xml"}},
        {"messages": [*ASK, {"role": "tool", "content": "1999"}]},
        {"messages": ASK, "tools": "look_up"},
        {"messages": ASK, "tools": [{"type": "function", "name": "look_up"}]},
        {"messages": ASK, "tools": [LOOK_UP], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    ],
)
async def test_what_the_api_forbids_is_refused(server: Upstream, client: AsyncOpenAI, body: dict[str, Any]) -> None:
    """A caller whose requests are wrong finds out here and not in production."""
    with pytest.raises(openai.BadRequestError):
        await client.post("/chat/completions", body={"model": "m", **body}, cast_to=object)
    assert server.ledger.calls == []


@pytest.mark.parametrize("fault", ["reset", "close", "stall", "stall_after_headers", "close_half_way"])
async def test_a_broken_connection_is_the_clients_own_error(
    server: Upstream, client: AsyncOpenAI, fault: Fault
) -> None:
    """Not an answer, and not an exception of the HTTP library's that escaped."""
    server.script.usual = Conduct(fault=fault)
    with pytest.raises(openai.APIConnectionError):
        await client.with_options(timeout=0.5).chat.completions.create(model="m", messages=ASK)


async def test_an_error_in_a_stream_is_raised(server: Upstream, client: AsyncOpenAI) -> None:
    """After the text that came before it."""
    server.script.usual = Conduct(fault="error_in_stream")
    stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
    pieces = [(await anext(stream)).choices[0].delta.content for _ in range(4)]
    with pytest.raises(openai.APIError) as failure:
        await anext(stream)
    assert (pieces, failure.value.code) == (["", "The", " answer", " is"], "told_to")


@pytest.mark.parametrize("fault", ["crlf_and_comments", "no_done", "drip", "wrong_content_type", "early_usage"])
async def test_an_odd_stream_is_read_in_full(server: Upstream, client: AsyncOpenAI, fault: Fault) -> None:
    """What the reference client accepts, ours has to."""
    server.script.usual = Conduct(fault=fault)
    stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == TEXT


async def test_filtered_content_says_so(server: Upstream, client: AsyncOpenAI) -> None:
    """By its reason to finish."""
    server.script.usual = Conduct(fault="content_filter")
    completion = await client.chat.completions.create(model="m", messages=ASK)
    assert completion.choices[0].finish_reason == "content_filter"
