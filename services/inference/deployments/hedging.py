"""When a slow call is hedged by a second one. Pure: times are passed in.

The method is J. Dean's and L. Barroso's (The Tail at Scale, CACM 56(2), 2013): a second request once the first has
taken longer than most do adds little load and cuts the tail.
"""

import math
from bisect import bisect_left, insort
from collections import deque


class FirstTokenTimes:
    """The latest calls' times to their first token, in seconds.

    Of a call that lost against its hedge only the delay before that is recorded: it took at least as long. Leaving it
    out would lower the percentile with each hedge, recording how long it was waited for would raise it; this keeps the
    percentile where it is.
    """

    def __init__(self, window_calls: int, min_calls: int) -> None:
        self._window_calls = window_calls
        self._min_calls = min_calls
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def record(self, seconds: float) -> None:
        """Adds one call; the oldest beyond the window is forgotten."""
        if len(self._latest) == self._window_calls:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(seconds)
        insort(self._sorted, seconds)

    def percentile(self, percent: float) -> float | None:
        """The smallest time that `percent` % of the calls did not exceed; None while there are too few."""
        calls = len(self._sorted)
        if calls < self._min_calls:
            return None
        return self._sorted[max(0, math.ceil(percent / 100 * calls) - 1)]


class HedgeBudget:
    """Keeps second calls to a share of all calls; as many as ten may be saved up."""

    _MOST_SAVED = 10.0

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._saved = 1.0

    def earn(self) -> None:
        """A call was made."""
        self._saved = min(self._saved + self._max_share, self._MOST_SAVED)

    def spend(self) -> bool:
        """Whether a second call may be made; if so it is paid for."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
