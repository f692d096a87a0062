"""A circuit breaker. Pure: the time is passed in.

    CLOSED ── failure rate of the window reached ──► OPEN ── open_for has passed ──► HALF_OPEN
      ▲                                               ▲                                 │
      │                                               └───────── a probe failed ────────┤
      └───────────────────────── all probes succeeded ──────────────────────────────────┘

The pattern is M. Nygard's (Release It!, 2007).
"""

from enum import Enum

from services.inference.deployments.settings import BreakerSettings

_BUCKETS = 10
_NO_PROBE = -1


class CircuitState(Enum):
    """Whether calls are let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class CallOutcome(Enum):
    """What a call says about the health of whom it asked."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """It was given up before it could say anything."""


class _Window:
    """Counts of calls and failures in the last `window_s` seconds, a tenth of it at a time."""

    def __init__(self, window_s: float) -> None:
        self._bucket_s = window_s / _BUCKETS
        self._newest = 0
        self._buckets = [(0, 0)] * _BUCKETS
        self.calls = 0
        self.failures = 0

    def add(self, now: float, *, failed: bool) -> None:
        self._advance(int(now / self._bucket_s))
        place = self._newest % _BUCKETS
        calls, failures = self._buckets[place]
        self._buckets[place] = (calls + 1, failures + failed)
        self.calls += 1
        self.failures += failed

    def clear(self) -> None:
        self._buckets = [(0, 0)] * _BUCKETS
        self.calls = self.failures = 0

    def _advance(self, bucket: int) -> None:
        for passed in range(self._newest + 1, min(bucket, self._newest + _BUCKETS) + 1):
            place = passed % _BUCKETS
            calls, failures = self._buckets[place]
            self._buckets[place] = (0, 0)
            self.calls -= calls
            self.failures -= failures
        self._newest = max(self._newest, bucket)


class Breaker:
    """Decides whether one deployment is asked. Times are seconds on any one monotonic clock.

    Calls in flight count as not failed so far: failures are often faster than answers, and a rate over what has ended
    would open the circuit of a deployment that is merely new. An open circuit whose deployment still answers now and
    then lets calls through that have nobody else to ask; it is shut only when next to nothing comes back.
    """

    def __init__(self, settings: BreakerSettings) -> None:
        self._min_calls = settings.min_calls
        self._failure_rate = settings.failure_rate
        self._shut_rate = settings.shut_rate
        self._open_for_s = settings.open_for.total_seconds()
        self._probes = settings.probes
        self._window = _Window(settings.window.total_seconds())
        self._failed_in_a_row = 0
        self._in_flight = 0
        self._period = 0
        """Counts the changes of state, so that a call begun before one is no probe after it."""
        self._probing = 0
        self._probed = 0
        self.state = CircuitState.CLOSED
        self.open_until = 0.0
        """When an open circuit lets the next call through."""

    def lets_through(self, now: float) -> bool:
        """Whether `begin` would let any call through; nothing changes."""
        if self.state is CircuitState.CLOSED:
            return True
        if self.state is CircuitState.OPEN:
            return now >= self.open_until
        return self._probing + self._probed < self._probes

    @property
    def shut(self) -> bool:
        """Whether `begin` would, otherwise, not even let a last resort through."""
        return self._reached(self._shut_rate)

    def begin(self, now: float, *, last_resort: bool = False) -> int | None:
        """Lets a call through; returns what `end` must be told, or None when it may not be made.

        Args:
            now: the time.
            last_resort: whether there is nobody else to ask.
        """
        if not self.lets_through(now):
            if not last_resort or self.shut:
                return None
            self._in_flight += 1
            return _NO_PROBE
        if self.state is CircuitState.OPEN:
            self._change(CircuitState.HALF_OPEN)
        if self.state is CircuitState.HALF_OPEN:
            self._probing += 1
        self._in_flight += 1
        return self._period

    def end(self, begun: int, outcome: CallOutcome, now: float) -> None:
        """Takes note of how the call ended that `begin` let through."""
        self._in_flight -= 1
        if outcome is not CallOutcome.UNKNOWN:
            failed = outcome is CallOutcome.FAILED
            self._window.add(now, failed=failed)
            self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        if self.state is CircuitState.CLOSED:
            if outcome is CallOutcome.FAILED and self._reached(self._failure_rate):
                self._open(now)
        elif self.state is CircuitState.HALF_OPEN and begun == self._period:
            self._end_probe(outcome, now)

    def _end_probe(self, outcome: CallOutcome, now: float) -> None:
        self._probing -= 1
        if outcome is CallOutcome.FAILED:
            self._open(now)
        elif outcome is CallOutcome.SUCCEEDED:
            self._probed += 1
            if self._probed == self._probes:
                self._change(CircuitState.CLOSED)
                self._window.clear()

    def _reached(self, rate: float) -> bool:
        # In a row they say enough however long they took: with few callers and slow failures the window never fills.
        if self._failed_in_a_row >= max(self._min_calls, self._in_flight):
            return True
        window = self._window
        return window.calls >= self._min_calls and window.failures >= rate * (window.calls + self._in_flight)

    def _open(self, now: float) -> None:
        self.open_until = now + self._open_for_s
        self._change(CircuitState.OPEN)

    def _change(self, state: CircuitState) -> None:
        self.state = state
        self._period += 1
        self._probing = self._probed = 0
