"""Which deployment a request asks next, and when. Pure: times and random numbers are passed in.

An open circuit is the last resort: it is asked only when no closed one can be before the deadline. Among the others
whoever may be asked sooner comes first, then a deployment this request has not asked before one that failed it, a free
slot before a queue, a lower order before a higher one; among equals chance decides by weight. One that failed is asked
again after a pause with full jitter (M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015), and not
before it said.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from services.contracts.failures import Busy, Exhausted, Failure
from services.inference.deployments.settings import RetrySettings
from services.inference.providers.refusals import UNUSABLE

_UNTOLD = Busy("UNTOLD", "nobody said when to come back").retry_after
"""A ``Busy`` always says when to come back; with this value it was not the provider who said so."""
_MOST_REASONS = 8
_LONGEST_REASON = 120
_SOONEST_S = 0.1


@dataclass(slots=True)
class Standing:
    """What is known of a deployment when one is to be chosen."""

    name: str
    order: int
    weight: float
    lets_through: bool
    """Whether its circuit does."""
    shut: bool
    """Whether its circuit does not even for a request that has nobody else to ask."""
    free: bool
    """Whether it has a slot; else a call waits in its queue."""
    ready_at: float
    """It asked to be left alone until then; in the past when it did not."""
    open_until: float
    """When its circuit lets the next call through, if that is open."""

    @property
    def may_be_asked(self) -> bool:
        """If only as a last resort."""
        return self.lets_through or not self.shut


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom to ask and when."""

    position: int
    """In the standings."""
    at: float
    last_resort: bool = False
    """Whether its circuit is open and there is nobody else to ask."""


def full_jitter(retry: int, base_s: float, cap_s: float, random: float) -> float:
    """The pause before the `retry`-th further try, from 1, in seconds; `random` is uniform in [0, 1)."""
    return random * min(cap_s, base_s * 2.0 ** min(retry - 1, 60))


def asked_pause(failure: Failure, cap_s: float) -> float:
    """For how many seconds the provider asked to be left alone, at most `cap_s`; 0 when it did not."""
    after = failure.retry_after
    if after is None or (isinstance(failure, Busy) and after == _UNTOLD):
        return 0.0
    return min(max(after.total_seconds(), 0.0), cap_s)


@dataclass(slots=True)
class _Tries:
    made: int = 0
    not_before: float = 0.0
    barred: bool = False
    failure: Failure | None = None


_UNTRIED = _Tries()


@dataclass(slots=True)
class Attempts:
    """What one request has tried so far."""

    settings: RetrySettings
    deadline: float
    made: int = 0
    _tries: dict[str, _Tries] = field(default_factory=dict)

    def choose(self, standings: Iterable[Standing], now: float, random: float) -> Choice | None:
        """The next attempt, or None when there is nobody left to ask or no time to."""
        if self.made >= self.settings.max_attempts or now >= self.deadline:
            return None
        best: tuple[bool, float, int, bool, int] | None = None
        equals: list[tuple[int, float]] = []
        for position, standing in enumerate(standings):
            at = self._askable_at(standing, now)
            if at >= self.deadline:
                continue
            made = self._tries.get(standing.name, _UNTRIED).made
            rank = (not standing.lets_through, at, made, not standing.free, standing.order)
            if best is None or rank < best:
                best, equals = rank, [(position, standing.weight)]
            elif rank == best:
                equals.append((position, standing.weight))
        if best is None:
            return None
        return Choice(_weighted(equals, random), at=best[1], last_resort=best[0])

    def failed(self, name: str, failure: Failure, now: float, random: float, *, saturated: bool = False) -> None:
        """Takes note that an attempt failed.

        Who refuses the request, is unusable or has no room in its queue is not asked again: the answer would be the
        same.
        """
        self.made += 1
        tries = self._tries.setdefault(name, _Tries())
        tries.made += 1
        tries.failure = failure
        tries.barred = saturated or failure.reason == UNUSABLE or not isinstance(failure, Busy | Exhausted)
        settings = self.settings
        base_s, cap_s = settings.backoff_base.total_seconds(), settings.backoff_cap.total_seconds()
        pause_s = asked_pause(failure, settings.retry_after_cap.total_seconds())
        tries.not_before = now + pause_s + full_jitter(tries.made, base_s, cap_s, random)

    def conclusion(self, alias: str, standings: Sequence[Standing], now: float) -> Failure:
        """What the request fails with, when there is nothing left to choose."""
        failures = [tries.failure for tries in self._tries.values() if tries.failure is not None]
        # One that is unusable says nothing of the request.
        judges = [failure for failure in failures if failure.reason != UNUSABLE]
        if judges and not any(isinstance(failure, Busy | Exhausted) for failure in judges):
            return judges[0]
        if failures and all(failure.reason == "MODEL_SATURATED" for failure in failures):
            return failures[0]
        told = []
        ready_at = []
        for standing in standings:
            tries = self._tries.get(standing.name)
            told.append(f"{standing.name}: {_reason(standing, tries)}")
            open_until = 0.0 if standing.may_be_asked else standing.open_until
            ready_at.append(max(standing.ready_at, open_until, tries.not_before if tries else 0.0))
        if len(told) > _MOST_REASONS:
            told[_MOST_REASONS:] = [f"and {len(told) - _MOST_REASONS} more"]
        when = f"{self.made} attempts were made"
        if self.made < self.settings.max_attempts and self._askable_too_late(standings, now):
            when = "too little time is left to ask one before its deadline: allow more"
        return Busy(
            "MODEL_UNAVAILABLE",
            f"no deployment of {alias} gave an answer and {when}; {'; '.join(told)}",
            retry_after=timedelta(seconds=max(_SOONEST_S, min(ready_at, default=now) - now)),
        )

    def _askable_at(self, standing: Standing, now: float) -> float:
        """The earliest time to ask this one; infinity when it is not to be asked at all."""
        tries = self._tries.get(standing.name, _UNTRIED)
        if tries.barred or not standing.may_be_asked:
            return math.inf
        return max(now, standing.ready_at, tries.not_before)

    def _askable_too_late(self, standings: Iterable[Standing], now: float) -> bool:
        soonest = min((self._askable_at(standing, now) for standing in standings), default=math.inf)
        return self.deadline <= soonest < math.inf


def cut_off(failure: Failure) -> Failure:
    """What a request fails with when its answer had begun: it cannot begin again elsewhere."""
    if not isinstance(failure, Busy | Exhausted):
        return failure
    return Busy(
        "ANSWER_CUT_OFF",
        f"the answer broke off after it had begun ({failure.message}); ask again",
        metadata={**failure.metadata, "cause": failure.reason},
    )


def _reason(standing: Standing, tries: _Tries | None) -> str:
    if tries is None or tries.failure is None:
        return "not asked" if standing.may_be_asked else "its circuit is open"
    message = tries.failure.message
    if len(message) > _LONGEST_REASON:
        message = message[: _LONGEST_REASON - 1] + "…"
    return f"{tries.failure.reason}, {message}"


def _weighted(equals: list[tuple[int, float]], random: float) -> int:
    if len(equals) == 1:
        return equals[0][0]
    left = random * sum(weight for _, weight in equals)
    for position, weight in equals:
        left -= weight
        if left < 0:
            return position
    return equals[-1][0]
