"""Both protocols over real HTTP, against an upstream that misbehaves on command."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Exhausted, Failure, Rejected
from services.inference.drafts import Tab
from services.inference.providers.chat import ChatModel, ChatRequest, Completion, FinishReason, Message, Tool, ToolCall
from services.inference.providers.endpoints import open_model
from services.inference.providers.settings import EndpointSettings
from services.inference.providers.usage import worst_case
from tests.upstream.answers import Reply, Tokens
from tests.upstream.misbehaviour import Conduct, Fault
from tests.upstream.server import Upstream, upstream

Protocol = Literal["openai", "anthropic"]
SECRET = "Zanzibar"
ASK = ChatRequest((Message("system", "Be brief."), Message("user", f"What is {SECRET}?")), 50)
TEXT = "The answer is 42 [1]."
TOLD = {
    "openai": TokenUsage(uncached_input=70, cache_read=30, output=15, reasoning=5),
    "anthropic": TokenUsage(uncached_input=70, cache_read=30, output=15, reasoning=5),
}
ENDLESS = {
    "openai": b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % (b"x" * 100_000),
    "anthropic": b'data: {"type": "content_block_delta", "delta": {"text": "%b"}}\n\n' % (b"x" * 100_000),
}
LOOK_UP = Tool(
    "look_up",
    "Looks a year up.",
    {"type": "object", "properties": {"year": {"type": "integer", "minimum": 1900}}, "required": ["year"]},
)
VERDICT: Mapping[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["yes", "no"]}},
    "required": ["kind"],
    "additionalProperties": False,
}
QUICK: Mapping[str, Any] = {"first_token_timeout": timedelta(seconds=0.3), "total_timeout": timedelta(seconds=0.6)}


@dataclass
class Heard:
    """What a caller saw of a call."""

    text: list[str] = field(default_factory=list)
    completion: Completion | None = None
    tab: Tab = field(default_factory=Tab)
    failure: Failure | None = None

    @property
    def reason(self) -> str:
        """Of the failure."""
        return self.failure.reason if self.failure is not None else "NONE"


@pytest.fixture
async def server() -> AsyncIterator[Upstream]:
    """An upstream that behaves."""
    async with upstream() as running:
        yield running


@pytest.fixture(params=["openai", "anthropic"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    """Either."""
    chosen: Protocol = request.param
    return chosen


@pytest.fixture(params=[True, False], ids=["streamed", "whole"])
def stream(request: pytest.FixtureRequest) -> bool:
    """Whether answers are streamed on the wire."""
    return bool(request.param)


def _settings(server: Upstream, protocol: Protocol, **settings: Any) -> EndpointSettings:
    return EndpointSettings(protocol=protocol, base_url=server.url, model="large", **settings)


async def _hear(model: ChatModel, request: ChatRequest = ASK, deadline: float = float("inf")) -> Heard:
    heard = Heard()
    try:
        async with aclosing(model.complete(request, heard.tab, deadline)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Completion):
                    heard.completion = piece
                else:
                    heard.text.append(piece)
    except Failure as failure:
        heard.failure = failure
    return heard


async def _ask(server: Upstream, protocol: Protocol, request: ChatRequest = ASK, **settings: Any) -> Heard:
    async with open_model(_settings(server, protocol, **settings)) as model:
        return await _hear(model, request)


async def test_an_answer_comes_with_its_usage(server: Upstream, protocol: Protocol, stream: bool) -> None:
    """The pieces make up the text; the tokens are in disjoint classes."""
    heard = await _ask(server, protocol, stream=stream)
    assert heard.completion == Completion(TEXT, FinishReason.STOP)
    assert "".join(heard.text) == TEXT
    assert (heard.tab.tokens, heard.tab.estimated) == (TOLD[protocol], False)


async def test_text_is_told_as_it_comes(server: Upstream, protocol: Protocol) -> None:
    """Not when the answer is whole."""
    server.script.usual = Conduct(pace_s=0.02)
    assert len((await _ask(server, protocol)).text) > 1


async def test_a_tool_is_called(server: Upstream, protocol: Protocol, stream: bool) -> None:
    """With its name and its arguments, which are no text."""
    request = replace(ASK, tools=(LOOK_UP,), tool_choice="look_up")
    heard = await _ask(server, protocol, request, stream=stream)
    assert heard.completion is not None
    assert heard.completion.finish_reason is FinishReason.TOOL_CALLS
    (call,) = heard.completion.tool_calls
    assert (bool(call.id), call.name, call.arguments) == (True, "look_up", '{"year": 1900}')
    assert heard.text == []


async def test_a_tools_result_goes_back(server: Upstream, protocol: Protocol) -> None:
    """The call and its result are told as the protocol tells them, and the model answers."""
    turns = (
        Message("assistant", "", tool_calls=(ToolCall("call_1", "look_up", '{"year": 1900}'),)),
        Message("tool", "1900 was a common year", tool_call_id="call_1"),
    )
    heard = await _ask(server, protocol, replace(ASK, messages=(*ASK.messages, *turns), tools=(LOOK_UP,)))
    assert heard.completion is not None
    assert heard.completion.text == TEXT
    (asked,) = server.requests
    assert "1900 was a common year" in str(asked["messages"][-1])
    assert "call_1" in str(asked["messages"][-1])


@pytest.mark.parametrize("structured_output", ["native", "tool"])
async def test_an_answer_is_held_to_a_schema(
    server: Upstream, protocol: Protocol, stream: bool, structured_output: str
) -> None:
    """By the provider's feature or by a tool it must call: the answer is text either way."""
    request = replace(ASK, response_schema=VERDICT)
    heard = await _ask(server, protocol, request, stream=stream, structured_output=structured_output)
    assert heard.completion == Completion('{"kind": "yes"}', FinishReason.STOP)


async def test_an_answer_cut_at_its_limit_says_so(server: Upstream, protocol: Protocol, stream: bool) -> None:
    """It is an answer; whoever asked for few tokens decides."""
    heard = await _ask(server, protocol, replace(ASK, max_output_tokens=2), stream=stream)
    assert heard.completion == Completion("The answer", FinishReason.LENGTH)


async def test_filtered_content_says_so(server: Upstream, protocol: Protocol, stream: bool) -> None:
    """And was paid for."""
    server.script.usual = Conduct(fault="content_filter")
    heard = await _ask(server, protocol, stream=stream)
    assert heard.completion is not None
    assert heard.completion.finish_reason is FinishReason.CONTENT_FILTER
    assert heard.tab.tokens == TOLD[protocol]


async def test_log_probabilities_are_told_with_the_runner_up(server: Upstream, stream: bool) -> None:
    """Where the protocol has them."""
    heard = await _ask(server, "openai", replace(ASK, top_logprobs=2), stream=stream)
    assert heard.completion is not None
    assert len(heard.completion.logprobs) == 6
    first = heard.completion.logprobs[0]
    assert first.logprob == -0.1
    assert first.runner_up is not None
    assert first.runner_up < first.logprob


async def test_anthropic_has_no_log_probabilities(server: Upstream) -> None:
    """It is said before anything is asked."""
    heard = await _ask(server, "anthropic", replace(ASK, top_logprobs=2))
    assert (type(heard.failure), heard.reason) == (Rejected, "LOGPROBS_UNSUPPORTED")
    assert (heard.tab.tokens, server.requests) == (None, [])


@pytest.mark.parametrize("fault", ["crlf_and_comments", "no_done", "drip", "wrong_content_type", "not_a_stream"])
async def test_other_dialects_are_understood(server: Upstream, protocol: Protocol, fault: Fault) -> None:
    """Line ends, comments, odd chunks, a missing end and a wrong type change nothing."""
    server.script.usual = Conduct(fault=fault)
    heard = await _ask(server, protocol)
    assert heard.completion is not None
    assert heard.completion.text == TEXT
    assert heard.tab.tokens == TOLD[protocol]


@pytest.mark.parametrize("fault", ["no_usage", "negative_usage", "text_usage", "absurd_usage"])
async def test_usage_that_is_not_believed_is_estimated(
    server: Upstream, protocol: Protocol, stream: bool, fault: Fault
) -> None:
    """The answer is good, its account is flagged and within the worst case."""
    server.script.usual = Conduct(fault=fault)
    heard = await _ask(server, protocol, stream=stream)
    assert heard.completion is not None
    assert heard.tab.estimated
    assert heard.tab.tokens is not None
    assert 0 < heard.tab.tokens.uncached_input < worst_case(ASK).uncached_input
    assert heard.tab.tokens.output == -(-len(TEXT) // 4)


@pytest.mark.parametrize(("fault", "reason"), [("early_usage", "NONE"), ("early_usage_cut", "PROVIDER_CUT")])
async def test_usage_told_before_the_answer_is_not_all_of_it(
    server: Upstream, protocol: Protocol, fault: Fault, reason: str
) -> None:
    """The input is as told; the output is estimated from what came, though the answer has come to its end."""
    server.script.usual = Conduct(fault=fault)
    server.script.reply = Reply(words=("word ",) * 400)
    heard = await _ask(server, protocol, replace(ASK, max_output_tokens=1000))
    assert heard.reason == reason
    assert heard.tab.estimated
    assert heard.tab.tokens == TokenUsage(uncached_input=70, cache_read=30, output=500)


async def test_no_output_told_for_what_was_written_is_estimated(
    server: Upstream, protocol: Protocol, stream: bool
) -> None:
    """Nobody writes for nothing; a server that does not count says 0."""
    server.script.reply = Reply(tokens=Tokens(uncached_input=70))
    heard = await _ask(server, protocol, stream=stream)
    assert heard.tab.estimated
    assert heard.tab.tokens == TokenUsage(uncached_input=70, output=-(-len(TEXT) // 4))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("reset", "PROVIDER_CUT"),
        ("close", "PROVIDER_CUT"),
        ("stall", "PROVIDER_TIMEOUT"),
        ("stall_after_headers", "PROVIDER_TIMEOUT"),
        ("reset_half_way", "PROVIDER_CUT"),
        ("close_half_way", "PROVIDER_CUT"),
        ("stall_half_way", "PROVIDER_TIMEOUT"),
        ("html", "PROVIDER_PROTOCOL"),
        ("malformed", "PROVIDER_PROTOCOL"),
        ("error_in_stream", "PROVIDER_ERROR"),
        ("empty", "PROVIDER_EMPTY"),
    ],
)
async def test_a_broken_answer_fails_and_is_accounted(
    server: Upstream, protocol: Protocol, stream: bool, fault: Fault, reason: str
) -> None:
    """Somebody pays for what the provider did, though nobody can use it; nothing of the prompt is told."""
    server.script.usual = Conduct(fault=fault)
    heard = await _ask(server, protocol, stream=stream, **QUICK)
    assert heard.completion is None
    assert (type(heard.failure), heard.reason) == (Busy, reason)
    assert SECRET not in str(heard.failure)
    assert heard.tab.tokens is not None
    assert heard.tab.tokens.uncached_input > 0
    assert heard.tab.estimated == (fault != "empty")


async def test_an_answer_without_end_is_left(protocol: Protocol) -> None:
    """Bytes are bounded too: in the time that a call may take, a fast provider could send gigabytes."""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(ENDLESS[protocol])
                await writer.drain()

    async with await asyncio.start_server(endless, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with open_model(EndpointSettings(base_url=url, protocol=protocol, model="large")) as model:
            heard = await _hear(model, ASK)
    assert (heard.reason, str(heard.failure)) == ("PROVIDER_PROTOCOL", "the provider's answer has no end")
    assert heard.tab.estimated


async def test_a_stream_cut_in_the_middle_fails(server: Upstream, protocol: Protocol) -> None:
    """Though its end looks like one."""
    server.script.usual = Conduct(fault="cut")
    heard = await _ask(server, protocol)
    assert heard.reason == "PROVIDER_CUT"
    assert heard.tab.estimated


@pytest.mark.parametrize(
    ("status", "kind", "charged"),
    [
        (400, Rejected, False),
        (401, Busy, False),
        (404, Busy, False),
        (408, Busy, True),
        (409, Busy, False),
        (425, Busy, False),
        (429, Exhausted, False),
        (500, Busy, True),
        (503, Busy, True),
        (529, Busy, False),
    ],
)
async def test_a_refusal_tells_its_status_and_never_the_prompt(
    server: Upstream, protocol: Protocol, status: int, kind: type[Failure], charged: bool
) -> None:
    """What is refused costs nothing; after a time-out or a failure nobody knows what was done: it is estimated."""
    server.script.usual = Conduct(status=status)
    heard = await _ask(server, protocol)
    assert type(heard.failure) is kind
    assert heard.failure is not None
    assert heard.failure.metadata["status"] == str(status)
    assert SECRET not in heard.failure.message + str(heard.failure.metadata)
    assert heard.tab.tokens is not None
    assert (heard.tab.tokens.uncached_input > 0, heard.tab.estimated) == (charged, charged)


async def test_a_provider_that_asks_to_wait_is_heard(server: Upstream, protocol: Protocol) -> None:
    """It knows best when to come back."""
    server.script.usual = Conduct(status=429, retry_after_s=1.5)
    heard = await _ask(server, protocol)
    assert heard.failure is not None
    assert heard.failure.retry_after == timedelta(seconds=1.5)


async def test_the_request_carries_what_is_set(server: Upstream, protocol: Protocol) -> None:
    """The key, the limit, the temperature, and what an operator adds."""
    settings = {"api_key": SecretStr("sk-1"), "body": {"metadata": {"team": "a"}}}
    await _ask(server, protocol, replace(ASK, temperature=0.5), **settings)
    (asked,) = server.requests
    assert asked["stream"] is True
    assert asked["max_completion_tokens" if protocol == "openai" else "max_tokens"] == 50
    assert (asked["temperature"], asked["metadata"]) == (0.5, {"team": "a"})
    assert server.credentials == ["Bearer sk-1" if protocol == "openai" else "sk-1"]


async def test_azure_is_reached_by_its_deployment(server: Upstream) -> None:
    """The path names the model, the version is a parameter."""
    url = f"{server.root}/openai/deployments/large"
    settings = EndpointSettings(
        base_url=url, model="gpt-5", provider="azure", api_key=SecretStr("k"), api_key_header="api-key", api_version="1"
    )
    async with open_model(settings) as model:
        heard = await _hear(model)
        assert (model.provider, model.model) == ("azure", "gpt-5")
    assert heard.completion is not None


async def test_a_server_that_is_not_there_costs_nothing(protocol: Protocol) -> None:
    """No connection, no call."""
    async with upstream() as gone:
        pass
    heard = await _ask(gone, protocol)
    assert (type(heard.failure), heard.reason, heard.tab.tokens) == (Busy, "PROVIDER_AWAY", None)


async def test_the_callers_deadline_ends_the_wait(server: Upstream, protocol: Protocol) -> None:
    """A caller who has no time left does not wait for the model's own limits."""
    server.script.usual = Conduct(fault="stall")
    async with open_model(_settings(server, protocol)) as model:
        heard = await _hear(model, deadline=time.monotonic() + 0.2)
    assert heard.reason == "PROVIDER_TIMEOUT"


async def test_without_time_nothing_is_asked(server: Upstream, protocol: Protocol) -> None:
    """A call that must come too late is not made."""
    async with open_model(_settings(server, protocol)) as model:
        heard = await _hear(model, deadline=time.monotonic() - 1)
    assert (heard.reason, heard.tab.tokens, server.requests) == ("DEADLINE_NEAR", None, [])


async def test_cancellation_hangs_up_and_leaves_an_estimate(server: Upstream, protocol: Protocol) -> None:
    """The provider stops writing for nobody; what it wrote is on the tab."""
    server.script.usual = Conduct(fault="stall_half_way")
    tab, begun = Tab(), asyncio.Event()

    async def ask() -> None:
        async with open_model(_settings(server, protocol)) as model, aclosing(model.complete(ASK, tab, 1e9)) as pieces:
            async for _ in pieces:
                begun.set()

    asking = asyncio.create_task(ask())
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(server.hung_up.wait(), 5)
    assert tab.estimated
    assert tab.tokens is not None
    assert tab.tokens.output > 0


async def test_whoever_leaves_early_hangs_up(server: Upstream, protocol: Protocol) -> None:
    """Closing the generator is enough."""
    server.script.usual = Conduct(pace_s=0.05)
    tab = Tab()
    async with open_model(_settings(server, protocol)) as model:
        async with aclosing(model.complete(ASK, tab, 1e9)) as pieces:
            await anext(pieces)
        await asyncio.wait_for(server.hung_up.wait(), 5)
    assert tab.estimated


async def test_connections_are_kept_and_bounded(server: Upstream, protocol: Protocol, stream: bool) -> None:
    """More calls than connections wait for their turn."""
    async with open_model(_settings(server, protocol, connections=2, stream=stream)) as model:
        heard = await asyncio.gather(*(_hear(model) for _ in range(8)))
    assert [each.reason for each in heard] == ["NONE"] * 8
    assert server.ledger.most_in_progress <= 2


async def test_a_call_that_finds_no_free_connection_in_time_fails(server: Upstream, protocol: Protocol) -> None:
    """And costs nothing."""
    server.script.usual = Conduct(fault="stall")
    short = timedelta(seconds=0.1)
    async with open_model(_settings(server, protocol, connections=1, connect_timeout=short)) as model:
        holding = asyncio.create_task(_hear(model))
        await server.asked.wait()
        heard = await _hear(model)
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
    assert (heard.reason, heard.tab.tokens) == ("PROVIDER_AWAY", None)
