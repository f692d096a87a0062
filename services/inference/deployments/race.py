"""Attempts side by side: the first to give a token is the answer, the others are cancelled."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Self

from services.inference.deployments.deployment import AttemptFailed
from services.inference.drafts import NoRoom
from services.inference.providers.chat import Completion
from services.runtime.seen_through import seen_through

_AHEAD = 16
"""Pieces an attempt may be ahead of whoever reads them."""

Attempt = AsyncGenerator[str | Completion, None]


class Race:
    """Each attempt runs in a task of its own from beginning to end: what it opens is closed by the same task.

    Leaving the block cancels whatever still runs and waits until it has settled.
    """

    def __init__(self) -> None:
        self._told: asyncio.Queue[tuple[int, str | Completion | Exception]] = asyncio.Queue(_AHEAD)
        self._runners: list[asyncio.Task[None]] = []
        self._left = 0
        self._leader: int | None = None
        self._first: str | Completion = ""
        self.failed: list[AttemptFailed] = []
        """Of attempts whose failure did not end the race."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancel(spared=None)
        await seen_through(self._ended())

    def enter(self, attempt: Attempt) -> None:
        """Starts an attempt."""
        self._runners.append(asyncio.create_task(self._run(len(self._runners), attempt)))
        self._left += 1

    async def leader(self) -> int:
        """Waits for the first token and cancels the other attempts; returns whose it is, 0 being the first to enter.

        An attempt for which a budget has no room drops out, unless it is the first to enter.

        Raises:
            AttemptFailed: all failed.
            Failure: as the meter of one of them.
        """
        while self._leader is None:
            runner, told = await self._told.get()
            if not isinstance(told, Exception):
                self._leader, self._first = runner, told
                self._cancel(spared=runner)
                break
            if isinstance(told, AttemptFailed):
                self.failed.append(told)
            elif runner == 0 or not isinstance(told, NoRoom):
                raise told
            self._left -= 1
            if not self._left:
                raise self.failed.pop()
        return self._leader

    async def pieces(self) -> Attempt:
        """Yields what the leader tells; the completion once the others have settled.

        Raises:
            AttemptFailed: the leader failed after its first token.
            Failure: as the meter of one of them.
        """
        runner, told = await self.leader(), self._first
        while not isinstance(told, Completion):
            yield told
            told = await self._next(runner)
        await self._settled()
        yield told

    async def _next(self, runner: int) -> str | Completion:
        while True:
            whose, told = await self._told.get()
            if whose != runner:
                continue
            if isinstance(told, Exception):
                raise told
            return told

    async def _settled(self) -> None:
        for ended in await seen_through(self._ended()):
            if isinstance(ended, Exception) and not isinstance(ended, AttemptFailed | NoRoom):
                raise ended

    async def _ended(self) -> list[BaseException | None]:
        return await asyncio.gather(*self._runners, return_exceptions=True)

    async def _run(self, number: int, attempt: Attempt) -> None:
        try:
            async with aclosing(attempt) as pieces:
                async for piece in pieces:
                    await self._tell(number, piece)
        except Exception as error:
            await self._tell(number, error)
            raise

    async def _tell(self, number: int, told: str | Completion | Exception) -> None:
        # Nobody reads what the others tell once there is a leader, and the queue is bounded.
        if self._leader is None or self._leader == number:
            await self._told.put((number, told))

    def _cancel(self, *, spared: int | None) -> None:
        for number, runner in enumerate(self._runners):
            # Once is enough: a second time would cut its settling short.
            if number != spared and not runner.cancelling():
                runner.cancel()
