"""Whom a request asks next, and when."""

import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.failures import Busy, Exhausted, Failure, Rejected
from services.inference.deployments.retry import Attempts, Choice, Standing, asked_pause, cut_off, full_jitter
from services.inference.deployments.settings import RetrySettings
from services.inference.providers.refusals import UNUSABLE
from tests.inference.deployments.fakes import busy

SETTINGS = RetrySettings(backoff_base=timedelta(seconds=1), backoff_cap=timedelta(seconds=8))
NOW, DEADLINE = 100.0, 160.0


def _standing(name: str, *, order: int = 0, free: bool = True, closed: bool = True, ready_at: float = 0.0) -> Standing:
    return Standing(name, order, 1.0, closed, not closed, free, ready_at, ready_at)


def _attempts(**changes: int) -> Attempts:
    return Attempts(SETTINGS.model_copy(update=changes), DEADLINE)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_jitter_is_full(retry: int, uniform: float) -> None:
    """Anywhere between nothing and the doubled base, which the cap bounds."""
    pause = full_jitter(retry, 0.1, 8.0, uniform)
    assert 0 <= pause <= min(8.0, 0.1 * 2 ** min(retry - 1, 20))


def test_the_pauses_double() -> None:
    """Up to the cap."""
    assert [full_jitter(retry, 1.0, 8.0, 0.5) for retry in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("failure", "pause_s"),
    [
        (Busy("DOWN", "a 500 without a word about when"), 0.0),
        (busy(after_s=7), 7.0),
        (busy(after_s=3600), 60.0),
        (Exhausted("LIMIT", "a 429 without Retry-After"), 0.0),
        (Exhausted("LIMIT", "a 429 with it", retry_after=timedelta(seconds=3)), 3.0),
        (Exhausted("LIMIT", "of a clock that is wrong", retry_after=timedelta(seconds=-3)), 0.0),
    ],
)
def test_a_provider_is_left_alone_for_as_long_as_it_asks(failure: Failure, pause_s: float) -> None:
    """But for no longer than the cap."""
    assert asked_pause(failure, 60.0) == pause_s


def test_another_deployment_comes_first() -> None:
    """At once, without a pause."""
    attempts = _attempts()
    attempts.failed("a", busy(), NOW, 0.9)
    assert attempts.choose([_standing("a"), _standing("b", order=5)], NOW, 0.0) == Choice(1, NOW)


def test_the_same_one_comes_after_a_pause() -> None:
    """When there is no other."""
    attempts = _attempts()
    attempts.failed("a", busy(), NOW, 0.5)
    assert attempts.choose([_standing("a")], NOW, 0.0) == Choice(0, NOW + 0.5)


def test_the_pause_a_provider_asks_for_comes_before_the_jitter() -> None:
    """So that those who were told the same do not come at the same time."""
    attempts = _attempts()
    attempts.failed("a", busy(after_s=7), NOW, 0.5)
    assert attempts.choose([_standing("a")], NOW, 0.0) == Choice(0, NOW + 7.5)


def test_a_pause_past_the_deadline_is_not_waited_for() -> None:
    """The answer would come too late."""
    attempts = _attempts()
    attempts.failed("a", busy(after_s=60), NOW, 0.5)
    assert attempts.choose([_standing("a")], NOW, 0.0) is None


def test_nothing_is_asked_after_the_deadline() -> None:
    """Not even for the first time."""
    assert _attempts().choose([_standing("a")], DEADLINE, 0.0) is None


def test_attempts_are_bounded() -> None:
    """Whoever is left."""
    attempts = _attempts(max_attempts=2)
    attempts.failed("a", busy(), NOW, 0.0)
    attempts.failed("b", busy(), NOW, 0.0)
    assert attempts.choose([_standing("c")], NOW, 0.0) is None


def test_who_refuses_is_not_asked_again() -> None:
    """Its answer would be the same; another's may differ."""
    attempts = _attempts()
    attempts.failed("a", Rejected("NO_LOGPROBS", "it tells none"), NOW, 0.0)
    assert attempts.choose([_standing("a")], NOW, 0.0) is None
    assert attempts.choose([_standing("a"), _standing("b")], NOW, 0.0) == Choice(1, NOW)


def test_who_is_unusable_is_not_asked_again() -> None:
    """Its key will be wrong a moment later, too."""
    attempts = _attempts()
    attempts.failed("a", Busy(UNUSABLE, "the provider answered 401"), NOW, 0.0)
    assert attempts.choose([_standing("a")], NOW, 0.0) is None
    assert attempts.choose([_standing("a"), _standing("b")], NOW, 0.0) == Choice(1, NOW)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (_standing("b"), _standing("a", order=1)),
        (_standing("b", order=1), _standing("a", free=False)),
        (_standing("b", order=1, free=False), _standing("a", closed=False)),
        (_standing("b", order=1, free=False), _standing("a", ready_at=NOW + 1)),
    ],
)
def test_some_are_asked_rather_than_others(better: Standing, worse: Standing) -> None:
    """The lower order; the free rather than that; the ready rather than that."""
    assert _attempts().choose([worse, better], NOW, 0.999) == Choice(1, NOW)
    assert _attempts().choose([better, worse], NOW, 0.999) == Choice(0, NOW)


def test_an_open_circuit_that_is_not_shut_is_the_last_resort() -> None:
    """Some answers are better than none, when nobody else can be asked."""
    ailing = replace(_standing("a", closed=False), shut=False)
    assert _attempts().choose([ailing, _standing("b", order=9)], NOW, 0.0) == Choice(1, NOW)
    assert _attempts().choose([ailing, _standing("b", closed=False)], NOW, 0.0) == Choice(0, NOW, last_resort=True)


AILING = replace(_standing("ailing", closed=False), shut=False)


def test_a_closed_circuits_pause_is_waited_for_rather_than_an_open_one_asked() -> None:
    """Moments later the one that is well can be asked; the open one needs to be left alone."""
    attempts = _attempts()
    attempts.failed("a", busy(), NOW, 0.05)
    assert attempts.choose([_standing("a", order=9), AILING], NOW, 0.0) == Choice(0, NOW + 0.05)


@pytest.mark.parametrize(
    ("failure", "saturated"),
    [
        (busy(after_s=60), False),
        (Busy("MODEL_SATURATED", "its queue is full"), True),
        (Rejected("NO_TOOLS", "it knows no tools"), False),
    ],
)
def test_an_open_circuit_is_asked_when_no_closed_one_can_be_in_time(failure: Failure, saturated: bool) -> None:
    """Not before the deadline, or not at all."""
    attempts = _attempts()
    attempts.failed("a", failure, NOW, 0.0, saturated=saturated)
    assert attempts.choose([_standing("a"), AILING], NOW, 0.0) == Choice(1, NOW, last_resort=True)


def test_equals_are_chosen_by_weight() -> None:
    """Three quarters to the one of weight three."""
    standings = [replace(_standing("a"), weight=3.0), _standing("b")]
    dice = random.Random(1)
    chosen = Counter(_attempts().choose(standings, NOW, dice.random()) for _ in range(4000))
    assert 0.72 < chosen[Choice(0, NOW)] / 4000 < 0.78


FAILURES = st.sampled_from(
    [busy(), busy(after_s=9), busy(after_s=1000), Exhausted("LIMIT", "limit"), Rejected("BAD", "bad")]
)


@given(st.data(), st.integers(1, 6), st.integers(1, 20))
def test_whatever_fails_it_ends_and_keeps_its_promises(data: st.DataObject, deployments: int, most: int) -> None:
    """No more attempts than set, none after the deadline or before a deployment may be asked; an honest end."""
    attempts, now = Attempts(SETTINGS.model_copy(update={"max_attempts": most}), DEADLINE), NOW
    standings = [
        _standing(str(number), order=data.draw(st.integers(0, 2)), closed=data.draw(st.booleans()))
        for number in range(deployments)
    ]
    unasked = {standing.name for standing in standings if standing.lets_through}
    asked_to_wait: dict[str, float] = {}
    refused: set[str] = set()
    made = 0
    while (choice := attempts.choose(standings, now, data.draw(st.floats(0, 1, exclude_max=True)))) is not None:
        chosen = standings[choice.position].name
        made += 1
        assert standings[choice.position].lets_through
        assert chosen not in refused
        assert now <= choice.at < DEADLINE
        assert choice.at >= asked_to_wait.get(chosen, 0.0)
        assert not unasked or chosen in unasked
        now = choice.at
        failure = data.draw(FAILURES)
        if isinstance(failure, Rejected):
            refused.add(chosen)
        asked_to_wait[chosen] = now + asked_pause(failure, 60.0)
        unasked.discard(chosen)
        attempts.failed(chosen, failure, now, data.draw(st.floats(0, 1, exclude_max=True)))
    assert made <= most
    assert isinstance(attempts.conclusion("alias", standings, now), Busy | Rejected)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 90)), max_size=6))
def test_a_last_resort_is_one(circuits: list[tuple[bool, bool, bool, int]]) -> None:
    """Whoever is in a queue, asks to be left alone or is shut: then no closed circuit can be asked in time."""
    standings = [
        replace(_standing(str(number), closed=closed, free=free, ready_at=NOW + after_s), shut=shut and not closed)
        for number, (closed, shut, free, after_s) in enumerate(circuits)
    ]
    in_time = [standing for standing in standings if standing.may_be_asked and standing.ready_at < DEADLINE]
    choice = _attempts().choose(standings, NOW, 0.0)
    assert (choice is not None) == bool(in_time)
    if choice is not None:
        assert standings[choice.position] in in_time
        assert choice.last_resort == (not any(standing.lets_through for standing in in_time))
        assert choice.last_resort == (not standings[choice.position].lets_through)


def test_the_end_tells_every_deployments_reason() -> None:
    """Whoever reads it need not look for the log."""
    attempts = _attempts()
    attempts.failed("a", busy("PROVIDER_DOWN"), NOW, 0.5)
    attempts.failed("b", Exhausted("PROVIDER_LIMIT", "its quota is used up"), NOW, 0.5)
    standings = [_standing("a"), _standing("b"), _standing("c", closed=False, ready_at=NOW + 3)]
    failure = attempts.conclusion("large", standings, NOW)
    assert isinstance(failure, Busy)
    assert failure.reason == "MODEL_UNAVAILABLE"
    assert failure.message == (
        "no deployment of large gave an answer and 2 attempts were made; a: PROVIDER_DOWN, it is away; "
        "b: PROVIDER_LIMIT, its quota is used up; c: its circuit is open"
    )
    assert failure.retry_after == timedelta(seconds=0.5)


@pytest.mark.parametrize("left_s", [0.0, 0.2, -0.1])
def test_the_end_says_that_the_time_was_too_short(left_s: float) -> None:
    """Whether or not it is up: the next attempt would begin after it, and only more of it helps."""
    attempts = _attempts()
    if left_s > 0:
        attempts.failed("a", busy(), DEADLINE - left_s, 0.5)
    assert attempts.choose([_standing("a")], DEADLINE - left_s, 0.0) is None
    message = attempts.conclusion("large", [_standing("a")], DEADLINE - left_s).message
    assert message.startswith(
        "no deployment of large gave an answer and too little time is left to ask one before its deadline: allow more; "
    )


def test_the_end_does_not_blame_the_time_for_what_more_of_it_would_not_change() -> None:
    """Attempts that are used up stay so, and a circuit that is shut is not waited for."""
    attempts = _attempts(max_attempts=1)
    attempts.failed("a", busy(after_s=60), NOW, 0.0)
    assert "and 1 attempts were made; " in attempts.conclusion("large", [_standing("a")], NOW).message
    shut = _standing("a", closed=False)
    assert "and 0 attempts were made; " in _attempts().conclusion("large", [shut], DEADLINE).message


def test_the_end_is_bounded_in_length() -> None:
    """However many deployments there are and whatever they say."""
    attempts = _attempts()
    standings = [_standing(f"deployment-{number}") for number in range(64)]
    for standing in standings:
        attempts.failed(standing.name, Busy("DOWN", "x" * 10_000), NOW, 0.0)
    message = attempts.conclusion("large", standings, NOW).message
    assert len(message) < 2000
    assert message.endswith("; and 56 more")


def test_when_all_refuse_the_refusal_is_the_end() -> None:
    """The caller must change something; that nobody answered would not say so."""
    attempts = _attempts()
    refusal = Rejected("BAD", "no such tool")
    attempts.failed("a", refusal, NOW, 0.0)
    assert attempts.conclusion("large", [_standing("a")], NOW) is refusal


def test_a_refusal_counts_though_another_deployment_is_unusable() -> None:
    """That one never looked at the request; whoever did says that it must be changed."""
    attempts = _attempts()
    refusal = Rejected("BAD", "no such tool")
    attempts.failed("a", Busy(UNUSABLE, "the provider answered 401"), NOW, 0.0)
    attempts.failed("b", refusal, NOW, 0.0)
    assert attempts.conclusion("large", [_standing("a"), _standing("b")], NOW) is refusal


def test_when_all_are_saturated_that_is_the_end() -> None:
    """It is our own limit, not the provider's."""
    attempts = _attempts()
    attempts.failed("a", Busy("MODEL_SATURATED", "full"), NOW, 0.0, saturated=True)
    assert attempts.choose([_standing("a")], NOW, 0.0) is None
    assert attempts.conclusion("large", [_standing("a")], NOW).reason == "MODEL_SATURATED"


def test_an_answer_cut_off_says_what_happened() -> None:
    """The reason of the provider is kept for programs."""
    failure = cut_off(Exhausted("PROVIDER_LIMIT", "its quota is used up", metadata={"status": "429"}))
    assert isinstance(failure, Busy)
    assert failure.reason == "ANSWER_CUT_OFF"
    assert failure.metadata == {"status": "429", "cause": "PROVIDER_LIMIT"}


def test_a_refusal_half_way_stays_a_refusal() -> None:
    """Asking again would not help."""
    refusal = Rejected("PROVIDER_REFUSED", "its filter stopped the answer")
    assert cut_off(refusal) is refusal
