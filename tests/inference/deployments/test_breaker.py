"""The circuit breaker."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.inference.deployments.breaker import Breaker, CallOutcome, CircuitState
from services.inference.deployments.settings import BreakerSettings

SETTINGS = BreakerSettings(
    window=timedelta(seconds=10), min_calls=4, failure_rate=0.5, open_for=timedelta(seconds=5), probes=2
)
FAILED, SUCCEEDED, UNKNOWN = CallOutcome.FAILED, CallOutcome.SUCCEEDED, CallOutcome.UNKNOWN


def _call(breaker: Breaker, outcome: CallOutcome, now: float) -> None:
    begun = breaker.begin(now)
    assert begun is not None
    breaker.end(begun, outcome, now)


def _state(breaker: Breaker) -> CircuitState:
    return breaker.state


def _opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(SETTINGS)
    for _ in range(4):
        _call(breaker, FAILED, at)
    assert _state(breaker) is CircuitState.OPEN
    return breaker


def test_it_opens_at_the_failure_rate() -> None:
    """Two of four calls reach a rate of a half."""
    breaker = Breaker(SETTINGS)
    for outcome in (SUCCEEDED, SUCCEEDED, FAILED):
        _call(breaker, outcome, 0.0)
    assert _state(breaker) is CircuitState.CLOSED
    _call(breaker, FAILED, 0.0)
    assert _state(breaker) is CircuitState.OPEN


def test_few_calls_mean_nothing() -> None:
    """Three failures of three calls are fewer than min_calls."""
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        _call(breaker, FAILED, 0.0)
    assert _state(breaker) is CircuitState.CLOSED


def test_failures_leave_the_window() -> None:
    """What was longer ago than the window counts no more."""
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        _call(breaker, FAILED, 0.0)
    for _ in range(3):
        _call(breaker, SUCCEEDED, 10.5)
    _call(breaker, FAILED, 10.5)
    assert _state(breaker) is CircuitState.CLOSED


def test_failures_in_a_row_count_however_slow_they_are() -> None:
    """With few callers and a deployment that hangs, the window never fills."""
    breaker = Breaker(SETTINGS)
    for minute in range(4):
        assert _state(breaker) is CircuitState.CLOSED
        _call(breaker, FAILED, 60.0 * minute)
    assert _state(breaker) is CircuitState.OPEN


def test_calls_given_up_mean_nothing() -> None:
    """A caller who leaves says nothing about the deployment."""
    breaker = Breaker(SETTINGS)
    for _ in range(100):
        _call(breaker, UNKNOWN, 0.0)
    for _ in range(3):
        _call(breaker, FAILED, 0.0)
    assert _state(breaker) is CircuitState.CLOSED


def test_an_open_circuit_lets_nothing_through_for_a_while() -> None:
    """And then as many probes as set."""
    breaker = _opened()
    assert breaker.begin(4.9) is None
    assert breaker.begin(5.0) is not None
    assert breaker.begin(5.0) is not None
    assert breaker.begin(5.0) is None


def test_it_closes_when_all_probes_succeed() -> None:
    """One is not enough."""
    breaker = _opened()
    _call(breaker, SUCCEEDED, 5.0)
    assert _state(breaker) is CircuitState.HALF_OPEN
    _call(breaker, SUCCEEDED, 5.0)
    assert _state(breaker) is CircuitState.CLOSED


def test_a_failed_probe_opens_it_again() -> None:
    """For as long as the first time."""
    breaker = _opened()
    _call(breaker, FAILED, 6.0)
    assert breaker.begin(10.9) is None
    assert breaker.begin(11.0) is not None


def test_a_probe_given_up_makes_room_for_another() -> None:
    """Otherwise callers who leave would keep it half open for good."""
    breaker = _opened()
    for _ in range(10):
        _call(breaker, UNKNOWN, 5.0)
    assert _state(breaker) is CircuitState.HALF_OPEN
    assert breaker.lets_through(5.0)


def test_a_call_from_before_is_no_probe() -> None:
    """It was begun when the circuit was closed and ends when that is half open."""
    breaker = Breaker(SETTINGS)
    late = breaker.begin(0.0)
    assert late is not None
    for _ in range(4):
        _call(breaker, FAILED, 0.0)
    _call(breaker, SUCCEEDED, 5.0)
    breaker.end(late, FAILED, 5.0)
    assert _state(breaker) is CircuitState.HALF_OPEN


def test_calls_in_flight_have_not_failed() -> None:
    """Failures are faster than answers: the first to end say little."""
    breaker = Breaker(SETTINGS)
    running = [begun for _ in range(10) if (begun := breaker.begin(0.0)) is not None]
    for begun in running[:4]:
        breaker.end(begun, FAILED, 0.1)
    assert _state(breaker) is CircuitState.CLOSED
    for begun in running[4:]:
        breaker.end(begun, SUCCEEDED, 1.0)
    assert _state(breaker) is CircuitState.CLOSED


def test_an_ailing_deployment_is_open_to_a_last_resort() -> None:
    """Half of its answers are better than none."""
    breaker = Breaker(SETTINGS)
    for outcome in (SUCCEEDED, SUCCEEDED, FAILED, FAILED):
        _call(breaker, outcome, 0.0)
    assert breaker.begin(1.0) is None
    assert breaker.begin(1.0, last_resort=True) is not None


def test_a_dead_deployment_is_not() -> None:
    """Those who have nobody else to ask learn it at once."""
    assert _opened().begin(1.0, last_resort=True) is None


def test_a_last_resort_that_fails_shuts_it() -> None:
    """It was ailing and died."""
    breaker = Breaker(SETTINGS)
    for outcome in (SUCCEEDED, SUCCEEDED, FAILED, FAILED):
        _call(breaker, outcome, 0.0)
    while (begun := breaker.begin(1.0, last_resort=True)) is not None:
        breaker.end(begun, FAILED, 1.0)
    assert breaker.shut
    assert _state(breaker) is CircuitState.OPEN


Step = tuple[float, bool, CallOutcome]
STEPS = st.lists(
    st.tuples(st.floats(0, 7), st.booleans(), st.sampled_from(CallOutcome)),
    max_size=80,
)


@given(STEPS)
def test_whatever_happens_it_keeps_its_promises(steps: list[Step]) -> None:
    """Open: nothing passes before its time. Half open: never more probes than set. It always recovers."""
    breaker, now = Breaker(SETTINGS), 0.0
    running: list[int] = []
    for passed, begins, outcome in steps:
        now += passed
        if begins:
            was, until = breaker.state, breaker.open_until
            would = breaker.lets_through(now)
            begun = breaker.begin(now)
            assert would == (begun is not None)
            assert was is not CircuitState.OPEN or (begun is not None) == (now >= until)
            if begun is not None:
                running.append(begun)
            if breaker.state is CircuitState.HALF_OPEN:
                assert sum(one == begun for one in running) <= SETTINGS.probes or begun is None
        elif running:
            breaker.end(running.pop(0), outcome, now)
    for begun in running:
        breaker.end(begun, UNKNOWN, now)
    now += 5.0
    while breaker.state is not CircuitState.CLOSED:
        _call(breaker, SUCCEEDED, now)


def _trips(calls: list[bool]) -> bool:
    return len(calls) >= 4 and sum(calls) >= 0.5 * len(calls)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60))
def test_it_opens_when_the_calls_of_the_window_say_so(calls: list[tuple[int, bool]]) -> None:
    """Never on a success. Against a list of all calls, whose window is the set one or up to a tenth shorter."""
    breaker, now = Breaker(SETTINGS), 0.0
    past: list[tuple[float, bool]] = []
    for quarters, fails in calls:
        now += quarters / 4
        _call(breaker, FAILED if fails else SUCCEEDED, now)
        past.append((now, fails))
        windows = {9.0} | {now - at for at, _ in past if 9.0 <= now - at < 10.0}
        in_a_row = len(past) >= 4 and all(failed for _, failed in past[-4:])
        trips = [in_a_row or _trips([failed for at, failed in past if now - at <= window]) for window in windows]
        if breaker.state is CircuitState.OPEN:
            assert any(trips)
            return
        assert not (fails and all(trips))
