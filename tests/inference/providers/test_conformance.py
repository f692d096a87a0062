"""The official SDKs are the reference: what they make of an answer is what we make of it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from services.inference.drafts import Tab
from services.inference.providers.chat import ChatRequest, Completion, FinishReason, Message, Tool, ToolCall
from services.inference.providers.endpoints import open_model
from services.inference.providers.settings import EndpointSettings
from tests.upstream.misbehaviour import Conduct
from tests.upstream.server import Upstream, upstream

PLAIN = ChatRequest((Message("system", "Be brief."), Message("user", "What is it?")), 50)
TOOL = Tool(
    "look_up", "Looks up.", {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}
)
REQUESTS = {
    "plain": PLAIN,
    "tool": replace(PLAIN, tools=(TOOL,)),
    "forced tool": replace(PLAIN, tools=(TOOL,), tool_choice="look_up"),
    "schema": replace(PLAIN, response_schema={"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}),
    "cut": replace(PLAIN, max_output_tokens=2),
}
CONDUCTS = [Conduct(), Conduct(fault="crlf_and_comments"), Conduct(fault="content_filter")]


@pytest.fixture
async def server() -> AsyncIterator[Upstream]:
    """An upstream of both protocols."""
    async with upstream() as running:
        yield running


@pytest.fixture(params=REQUESTS)
def request_(request: pytest.FixtureRequest) -> ChatRequest:
    """What is asked."""
    return REQUESTS[request.param]


@pytest.fixture(params=CONDUCTS, ids=lambda conduct: conduct.fault)
def conduct(request: pytest.FixtureRequest) -> Conduct:
    """How it is answered."""
    chosen: Conduct = request.param
    return chosen


async def _ours(settings: EndpointSettings, request: ChatRequest) -> tuple[Completion, Tab]:
    tab = Tab()
    async with open_model(settings) as model:
        *_, completion = [piece async for piece in model.complete(request, tab, 1e9)]
    assert isinstance(completion, Completion)
    return completion, tab


async def _openais(server: Upstream) -> Any:
    """What OpenAI's client reads when our own request is sent again."""
    body: dict[str, Any] = {key: value for key, value in server.requests[0].items() if not key.startswith("stream")}
    async with AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
        return await client.chat.completions.create(**body)


@pytest.mark.parametrize("stream", [True, False])
async def test_chat_completions_read_as_openais_client_reads_them(
    server: Upstream, request_: ChatRequest, conduct: Conduct, stream: bool
) -> None:
    """Our own request, sent again by the SDK: text, calls, reason and usage agree."""
    server.script.usual = conduct
    completion, tab = await _ours(EndpointSettings(base_url=server.url, model="m", stream=stream), request_)
    theirs = await _openais(server)
    (choice,) = theirs.choices
    assert completion.text == (choice.message.content or "")
    assert [(call.id, call.name, call.arguments) for call in completion.tool_calls] == [
        (call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()
    ]
    assert completion.finish_reason.value.replace(" ", "_") == choice.finish_reason
    assert theirs.usage is not None
    tokens = tab.tokens
    assert tokens is not None
    assert tokens.uncached_input + tokens.cache_read + tokens.cache_write == theirs.usage.prompt_tokens
    assert tokens.output + tokens.reasoning == theirs.usage.completion_tokens


@pytest.mark.parametrize("stream", [True, False])
async def test_calls_without_identities_are_as_many_as_openais_client_reads(server: Upstream, stream: bool) -> None:
    """Two of one tool, both with an empty id and index 0."""
    server.script.usual = Conduct(fault="anonymous_calls")
    settings = EndpointSettings(base_url=server.url, model="m", stream=stream)
    completion, _ = await _ours(settings, REQUESTS["tool"])
    theirs = (await _openais(server)).choices[0].message.tool_calls or ()
    assert len(theirs) == 2
    assert completion.tool_calls == tuple(
        ToolCall(call.id, call.function.name, call.function.arguments) for call in theirs
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_messages_read_as_anthropics_client_reads_them(
    server: Upstream, request_: ChatRequest, conduct: Conduct, stream: bool
) -> None:
    """Our own request, sent again by the SDK: text, calls, reason and usage agree."""
    server.script.usual = conduct
    settings = EndpointSettings(protocol="anthropic", base_url=server.url, model="m", stream=stream)
    completion, tab = await _ours(settings, request_)
    body: dict[str, Any] = {key: value for key, value in server.requests[0].items() if key != "stream"}
    async with (
        AsyncAnthropic(base_url=server.root, api_key="k", max_retries=0) as client,
        client.messages.stream(**body) as streamed,
    ):
        theirs = await streamed.get_final_message()
    assert completion.text == "".join(block.text for block in theirs.content if block.type == "text")
    assert [(call.id, call.name) for call in completion.tool_calls] == [
        (block.id, block.name) for block in theirs.content if block.type == "tool_use"
    ]
    reasons = {
        "end_turn": FinishReason.STOP,
        "max_tokens": FinishReason.LENGTH,
        "tool_use": FinishReason.TOOL_CALLS,
        "refusal": FinishReason.CONTENT_FILTER,
    }
    assert completion.finish_reason is reasons[str(theirs.stop_reason)]
    tokens = tab.tokens
    assert tokens is not None
    assert tokens.uncached_input == theirs.usage.input_tokens
    assert tokens.cache_read == theirs.usage.cache_read_input_tokens
    assert tokens.cache_write == theirs.usage.cache_creation_input_tokens
    assert tokens.output + tokens.reasoning == theirs.usage.output_tokens
