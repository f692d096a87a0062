"""Model aliases: failover, retry, the circuit, saturation, hedging and the account of it all."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import pytest

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Exhausted, Failure, Rejected
from services.inference.deployments.model import opened
from services.inference.drafts import NoRoom
from services.inference.providers.chat import ChatModel
from services.inference.providers.settings import EndpointSettings
from tests.inference.deployments.fakes import (
    DONE,
    FAR,
    REQUEST,
    CountingMeter,
    FakeChat,
    Step,
    busy,
    model,
    now,
    settings,
    told,
    virtually,
)

ANSWER: list[Step] = ["two ", "weeks", DONE]
USED = TokenUsage(uncached_input=10, output=2)


def test_an_answer_streams() -> None:
    """One attempt, one call of the meter."""

    async def test() -> None:
        meter = CountingMeter()
        assert await told(model([FakeChat([ANSWER])]).complete(REQUEST, meter, FAR)) == ANSWER
        assert (meter.begun, meter.succeeded, meter.settled[0].tokens) == (1, 1, USED)

    virtually(test())


@pytest.mark.parametrize(
    "failure",
    [
        busy(),
        busy(after_s=30),
        Exhausted("PROVIDER_LIMIT", "its limit is reached"),
        Rejected("NO_TOOLS", "it knows no tools"),
    ],
)
def test_another_deployment_stands_in_at_once(failure: Failure) -> None:
    """Whatever the first one failed with."""

    async def test() -> None:
        meter, began = CountingMeter(), now()
        alias = model([FakeChat([[failure]], "a"), FakeChat([ANSWER], "b")])
        assert await told(alias.complete(REQUEST, meter, FAR)) == ANSWER
        assert now() == began
        assert [tab.tokens for tab in meter.settled] == [None, USED]

    virtually(test())


def test_a_single_deployment_is_asked_again_after_a_pause() -> None:
    """With full jitter: half of the base when chance says a half."""

    async def test() -> None:
        began = now()
        alias = model([FakeChat([[busy()], [busy()], ANSWER])], lambda: 0.5)
        assert await told(alias.complete(REQUEST, CountingMeter(), FAR)) == ANSWER
        assert now() == pytest.approx(began + 0.05 + 0.1)

    virtually(test())


def test_retry_after_is_honoured() -> None:
    """Also by requests that come later: the deployment is left alone."""

    async def test() -> None:
        began, chat = now(), FakeChat([[busy(after_s=7)], ANSWER])
        alias = model([chat], lambda: 0.0)
        answers = [told(alias.complete(REQUEST, CountingMeter(), FAR)) for _ in range(2)]
        assert await asyncio.gather(*answers) == [ANSWER, ANSWER]
        assert now() == pytest.approx(began + 7)

    virtually(test())


def test_retry_after_past_the_deadline_is_not_waited_for() -> None:
    """The failure says when to come back."""

    async def test() -> None:
        began = now()
        alias = model([FakeChat([[busy(after_s=7)], ANSWER])], lambda: 0.0)
        with pytest.raises(Busy, match="PROVIDER_DOWN") as failure:
            await told(alias.complete(REQUEST, CountingMeter(), began + 5))
        assert failure.value.retry_after is not None
        assert failure.value.retry_after.total_seconds() == pytest.approx(7)
        assert now() == began

    virtually(test())


def test_after_the_first_token_a_stream_does_not_begin_again() -> None:
    """The caller would read two beginnings; the failure says what happened, and what was used is on the tab."""

    async def test() -> None:
        meter, other = CountingMeter(), FakeChat([ANSWER], "b")
        alias = model([FakeChat([["two ", busy("PROVIDER_RESET")]], "a"), other])
        pieces = alias.complete(REQUEST, meter, FAR)
        assert await anext(pieces) == "two "
        with pytest.raises(Busy, match="broke off after it had begun") as failure:
            await anext(pieces)
        assert (failure.value.reason, failure.value.metadata["cause"]) == ("ANSWER_CUT_OFF", "PROVIDER_RESET")
        assert other.calls == 0
        assert [tab.tokens for tab in meter.settled] == [USED]

    virtually(test())


def test_nothing_told_is_no_beginning() -> None:
    """An empty piece leaves the stream free to fail over."""

    async def test() -> None:
        alias = model([FakeChat([["", busy()]], "a"), FakeChat([ANSWER], "b")])
        assert await told(alias.complete(REQUEST, CountingMeter(), FAR)) == ANSWER

    virtually(test())


def test_a_whole_answer_fails_over_to_the_end() -> None:
    """Nobody has seen the beginning; both attempts are charged."""

    async def test() -> None:
        meter = CountingMeter()
        alias = model([FakeChat([["two ", busy()]], "a"), FakeChat([ANSWER], "b")])
        assert await alias.completed(REQUEST, meter, FAR) == DONE
        assert [tab.tokens for tab in meter.settled] == [USED, USED]
        assert meter.succeeded == 1

    virtually(test())


def test_an_answer_without_an_end_is_a_failure() -> None:
    """A stream that stops in the middle is no answer."""

    async def test() -> None:
        alias = model([FakeChat([["two "]], "a"), FakeChat([ANSWER], "b")])
        assert await alias.completed(REQUEST, CountingMeter(), FAR) == DONE

    virtually(test())


def test_a_full_budget_is_never_retried() -> None:
    """The meter's failure is not the deployment's."""

    async def test() -> None:
        meter, chat = CountingMeter(NoRoom("BUDGET_REACHED", "the month's budget is spent")), FakeChat([ANSWER])
        alias = model([chat, FakeChat([ANSWER], "b")])
        with pytest.raises(NoRoom):
            await told(alias.complete(REQUEST, meter, FAR))
        assert (meter.begun, chat.calls) == (1, 0)

    virtually(test())


def test_usage_that_cannot_be_told_fails_the_answer() -> None:
    """It would go unaccounted; another attempt would only cost more."""

    async def test() -> None:
        meter = CountingMeter(untold=Busy("USAGE_NOT_TOLD", "the bus is away"))
        alias = model([FakeChat([ANSWER]), FakeChat([ANSWER], "b")])
        with pytest.raises(Busy, match="the bus is away"):
            await alias.completed(REQUEST, meter, FAR)
        assert meter.begun == 1

    virtually(test())


def test_a_completion_is_told_after_it_is_settled() -> None:
    """Whoever has it may leave: the call counts as one that succeeded."""

    async def test() -> None:
        meter = CountingMeter()
        async with aclosing(model([FakeChat([ANSWER])]).complete(REQUEST, meter, FAR)) as pieces:
            async for piece in pieces:
                if piece is DONE:
                    break
        assert (meter.open, meter.succeeded) == (0, 1)

    virtually(test())


def test_who_stops_reading_pays_for_what_was_used() -> None:
    """The slot is free again and the provider's stream closed."""

    async def test() -> None:
        meter, chat = CountingMeter(), FakeChat([ANSWER])
        async with aclosing(model([chat]).complete(REQUEST, meter, FAR)) as pieces:
            assert await anext(pieces) == "two "
        assert (meter.open, chat.open) == (0, 0)
        assert [tab.tokens for tab in meter.settled] == [USED]

    virtually(test())


def test_a_deployment_that_keeps_failing_is_left_alone() -> None:
    """And is asked again after a while: nobody restarts anything."""

    async def test() -> None:
        sick, well = FakeChat([[busy()]] * 12 + [ANSWER], "a"), FakeChat([ANSWER], "b")
        alias = model([sick, well], breaker={"min_calls": 10, "open_for": 5})
        for _ in range(20):
            await told(alias.complete(REQUEST, CountingMeter(), FAR))
        assert sick.calls == 10
        for _ in range(10):
            await asyncio.sleep(5.01)
            await told(alias.complete(REQUEST, CountingMeter(), FAR))
        assert sick.calls > 13
        assert well.calls < 24

    virtually(test())


def test_a_circuit_that_lets_calls_through_again_ends_the_wait_for_another() -> None:
    """A minute's Retry-After of the one is not waited for when the other can be tried after five seconds."""

    async def test() -> None:
        began = now()
        one = FakeChat([[busy(after_s=60)], ANSWER], "a")
        other = FakeChat([[busy()], [busy()], ANSWER], "b")
        alias = model([one, other], lambda: 0.0, breaker={"min_calls": 2, "open_for": 5})
        assert await told(alias.complete(REQUEST, CountingMeter(), began + 90)) == ANSWER
        assert now() == pytest.approx(began + 5)

    virtually(test())


def test_all_down_fails_within_the_deadline() -> None:
    """However they are down, whoever waits. When they are back they are asked again; nobody restarts anything."""

    async def test() -> None:
        chats = [FakeChat([[3.0, busy()], [1e6], [busy(after_s=5)]], name) for name in "ab"]
        alias = model(chats, breaker={"min_calls": 3, "open_for": 5})

        async def ask() -> str:
            deadline = now() + 20
            with pytest.raises(Busy) as failure:
                await told(alias.complete(REQUEST, CountingMeter(), deadline))
            assert now() <= deadline + 1e-6
            return failure.value.reason

        for _ in range(20):
            reasons = await asyncio.gather(*(ask() for _ in range(10)))
            assert set(reasons) == {"MODEL_UNAVAILABLE"}
            await asyncio.sleep(1)
        for chat in chats:
            chat.scripts = [ANSWER]
        await asyncio.sleep(5)
        assert await told(alias.complete(REQUEST, CountingMeter(), now() + 20)) == ANSWER

    virtually(test())


def test_an_impatient_caller_says_nothing_about_a_deployment() -> None:
    """Deadlines far too short for the model do not close it for everybody else."""

    async def test() -> None:
        chat = FakeChat([[2.0, *ANSWER]])
        alias = model([chat])
        for _ in range(30):
            with pytest.raises(Busy):
                await told(alias.complete(REQUEST, CountingMeter(), now() + 0.1))
        assert await told(alias.complete(REQUEST, CountingMeter(), FAR)) == ANSWER

    virtually(test())


def test_a_deployment_that_hangs_is_left_alone() -> None:
    """Callers who give up after the patience of the settings are enough to know."""

    async def test() -> None:
        chat = FakeChat([[1e6]])
        alias = model([chat])
        for _ in range(10):
            with pytest.raises(Busy):
                await told(alias.complete(REQUEST, CountingMeter(), now() + 15))
        with pytest.raises(Busy, match="its circuit is open"):
            await told(alias.complete(REQUEST, CountingMeter(), now() + 15))
        assert chat.calls <= 10

    virtually(test())


def test_a_saturated_deployment_overflows_to_the_next() -> None:
    """Rather than have calls wait for the first."""

    async def test() -> None:
        began, slow, spare = now(), FakeChat([[10.0, DONE]], "a"), FakeChat([[10.0, DONE]], "b")
        alias = model([slow, spare], deployment={"concurrency": 1})
        answers = [alias.completed(REQUEST, CountingMeter(), FAR) for _ in range(2)]
        assert await asyncio.gather(*answers) == [DONE, DONE]
        assert (slow.calls, spare.calls, now()) == (1, 1, began + 10)

    virtually(test())


def test_saturation_has_a_failure_of_its_own() -> None:
    """Slots and queues are bounded; what does not fit fails at once and nothing is reserved for it."""

    async def test() -> None:
        meter = CountingMeter()
        alias = model([FakeChat([[1.0, DONE]])], deployment={"concurrency": 2, "queue_length": 3})
        answers = await asyncio.gather(
            *(alias.completed(REQUEST, meter, FAR) for _ in range(8)), return_exceptions=True
        )
        refused = [answer.reason for answer in answers if isinstance(answer, Busy)]
        assert refused == ["MODEL_SATURATED"] * 3
        assert meter.begun == 5

    virtually(test())


HEDGE = {"percentile": 95, "min_calls": 20, "window_calls": 100, "max_share": 1.0}
FAST: list[Step] = [0.1, *ANSWER]


def test_a_slow_call_is_hedged() -> None:
    """The second deployment's answer comes soon, the first one's tab is charged."""

    async def test() -> None:
        slow, other = FakeChat([FAST] * 20 + [[30.0, "late", DONE]], "a"), FakeChat([FAST], "b")
        alias, meter = model([slow, other], hedge=HEDGE), CountingMeter()
        for _ in range(20):
            await told(alias.complete(REQUEST, meter, FAR))
        began = now()
        assert await told(alias.complete(REQUEST, meter, FAR)) == ANSWER
        assert now() == pytest.approx(began + 0.2)
        assert (slow.open, meter.open, meter.begun, meter.succeeded) == (0, 0, 22, 21)
        assert TokenUsage(uncached_input=10) in [tab.tokens for tab in meter.settled[-2:]]
        assert len(asyncio.all_tasks()) == 1

    virtually(test())


def test_a_fast_call_is_not_hedged() -> None:
    """It costs nothing more."""

    async def test() -> None:
        other = FakeChat([FAST], "b")
        alias = model([FakeChat([FAST], "a"), other], hedge=HEDGE)
        for _ in range(50):
            assert await told(alias.complete(REQUEST, CountingMeter(), FAR)) == ANSWER
        assert other.calls == 0

    virtually(test())


def test_the_first_may_still_win() -> None:
    """The second one is cancelled and charged."""

    async def test() -> None:
        first, second = FakeChat([FAST] * 20 + [[0.15, *ANSWER]], "a"), FakeChat([[9.0, "other", DONE]], "b")
        alias, meter = model([first, second], hedge=HEDGE), CountingMeter()
        for _ in range(21):
            assert await told(alias.complete(REQUEST, meter, FAR)) == ANSWER
        assert (second.calls, second.open, meter.open, meter.begun) == (1, 0, 0, 22)

    virtually(test())


def test_hedging_keeps_to_its_share() -> None:
    """When everything is slow, second calls would make it slower."""

    async def test() -> None:
        chats = [FakeChat([FAST] * 20 + [[5.0, *ANSWER]], "a"), FakeChat([[5.0, *ANSWER]], "b")]
        alias, meter = model(chats, hedge={**HEDGE, "max_share": 0.1, "min_calls": 20}), CountingMeter()
        for _ in range(20):
            await told(alias.complete(REQUEST, meter, FAR))
        await asyncio.gather(*(told(alias.complete(REQUEST, meter, FAR)) for _ in range(50)))
        assert 70 < meter.begun <= 70 + 1 + 7

    virtually(test())


def test_a_hedge_a_budget_has_no_room_for_is_not_made() -> None:
    """The first attempt goes on."""

    async def test() -> None:
        meter = CountingMeter(NoRoom("BUDGET_REACHED", "the month's budget is spent"), refuse_from=21)
        alias = model([FakeChat([FAST] * 20 + [[2.0, *ANSWER]], "a"), FakeChat([FAST], "b")], hedge=HEDGE)
        for _ in range(21):
            assert await told(alias.complete(REQUEST, meter, FAR)) == ANSWER
        assert meter.begun == 22

    virtually(test())


def test_when_both_of_a_race_fail_the_request_goes_on() -> None:
    """With a third deployment, and each failure counted."""

    async def test() -> None:
        chats = [
            FakeChat([FAST] * 20 + [[1.0, busy()]], "a"),
            FakeChat([[1.0, busy()]], "b"),
            FakeChat([ANSWER], "c"),
        ]
        alias, meter = model(chats, hedge=HEDGE), CountingMeter()
        for _ in range(21):
            assert await told(alias.complete(REQUEST, meter, FAR)) == ANSWER
        assert [chat.calls for chat in chats] == [21, 1, 1]

    virtually(test())


def test_a_bug_in_a_provider_is_no_failure_to_retry() -> None:
    """It is raised as it is, and nothing stays behind."""

    async def test() -> None:
        meter = CountingMeter()
        alias = model([FakeChat([[ZeroDivisionError()]]), FakeChat([ANSWER], "b")])
        with pytest.raises(ZeroDivisionError):
            await told(alias.complete(REQUEST, meter, FAR))
        assert meter.open == 0

    virtually(test())


async def test_an_alias_opens_and_closes_its_deployments() -> None:
    """In order and in reverse; its price is that of the one it prefers."""
    happened = list[str]()

    def open_chat(endpoint: EndpointSettings) -> AbstractAsyncContextManager[ChatModel]:
        @asynccontextmanager
        async def opening() -> AsyncGenerator[ChatModel, None]:
            number = len(happened)
            happened.append(f"open {number}")
            yield FakeChat([ANSWER], provider=f"provider {number}")
            happened.append(f"close {number}")

        return opening()

    async with opened("large", settings("a", "b"), open_chat) as alias:
        assert alias.priced_as == ("provider 0", "m")
        assert await alias.completed(REQUEST, CountingMeter(), FAR) == DONE
    assert happened == ["open 0", "open 1", "close 1", "close 0"]
