"""Forecasts in a process of their own: their libraries take seconds to import, and fitting would hold up every call.

The process is started when forecasts are asked for, answers in JSON and ends; the kernel ends it when it computes for
too long or when this process dies.
"""

import asyncio
import contextlib
import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import services.runtime.leashed as leash
from services.contracts.failures import Busy
from services.metering.reports.forecasting import MonthEnd, forecast_month_end
from services.runtime.telemetry import log

_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Series:
    """What forecast_month_end needs to know of one tenant."""

    daily: Sequence[Decimal]
    today_so_far: Decimal
    spent_before_today: Decimal


class ForecastingProcess:
    """Forecasts many series at once, one batch after another."""

    def __init__(self, time_limit: timedelta = timedelta(minutes=2)) -> None:
        """`time_limit` is how long a batch may take, its wait for the one before it included."""
        self._time_limit = time_limit
        self._turn = asyncio.Lock()

    async def month_ends(
        self, series: Sequence[Series], days_left: int, today_left: float, confidence: float
    ) -> list[MonthEnd]:
        """Forecasts of a page of series, in their order. Cancelling it kills the process.

        Raises:
            Busy: it takes too long, or the process could not be started or died.
        """
        asked = {"days_left": days_left, "today_left": today_left, "confidence": confidence}
        try:
            async with asyncio.timeout(self._time_limit.total_seconds()), self._turn:
                # A thousand series are a hundred thousand amounts to spell.
                answer = await self._answer(await asyncio.to_thread(_spelled, asked, series))
        except TimeoutError:
            raise Busy("FORECAST_SLOW", "the forecasts take too long; ask for fewer tenants at a time") from None
        return [
            MonthEnd(Decimal(expected), Decimal(low), Decimal(high), method) for expected, low, high, method in answer
        ]

    async def _answer(self, asked: bytes) -> list[Any]:
        seconds = str(round(self._time_limit.total_seconds()))
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        command = (str(Path(leash.__file__)), str(os.getpid()), sys.executable, "-m", __name__, seconds)
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdin=pipe, stdout=pipe, stderr=pipe, env={**environment, **_ONE_THREAD}
            )
        except OSError as error:
            raise Busy("FORECAST_NOT_STARTED", "no process could be started for forecasts; try again") from error
        try:
            told, complaint = await process.communicate(asked)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        if process.returncode != 0:
            log.error(
                "forecasting died", status=process.returncode, complaint=complaint[-1000:].decode(errors="replace")
            )
            raise Busy("FORECAST_DIED", "the process that forecasts died; try again")
        answer: list[Any] = json.loads(told)
        return answer


def _spelled(asked: Mapping[str, Any], series: Sequence[Series]) -> bytes:
    amounts = [
        [[str(cost) for cost in one.daily], str(one.today_so_far), str(one.spent_before_today)] for one in series
    ]
    return json.dumps({**asked, "series": amounts}).encode()


def main() -> None:
    """Reads one batch and answers it."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    asked = json.load(sys.stdin)
    ends = [
        forecast_month_end(
            [Decimal(cost) for cost in daily],
            Decimal(today_so_far),
            asked["days_left"],
            asked["confidence"],
            spent_before_today=Decimal(spent_before_today),
            today_left=asked["today_left"],
        )
        for daily, today_so_far, spent_before_today in asked["series"]
    ]
    json.dump([[str(end.expected), str(end.low), str(end.high), end.method] for end in ends], sys.stdout)


if __name__ == "__main__":
    main()
