"""A model alias: several deployments that stand in for each other."""

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager

from services.contracts.events import TokenUsage
from services.inference.deployments.deployment import AttemptFailed, Call, Clock, Deployment
from services.inference.deployments.hedging import FirstTokenTimes, HedgeBudget
from services.inference.deployments.race import Race
from services.inference.deployments.retry import Attempts, cut_off
from services.inference.deployments.settings import ModelSettings
from services.inference.drafts import Meter
from services.inference.providers.chat import ChatModel, ChatRequest, Completion
from services.inference.providers.endpoints import open_model
from services.inference.providers.settings import EndpointSettings
from services.inference.providers.usage import worst_case

Open = Callable[[EndpointSettings], AbstractAsyncContextManager[ChatModel]]
"""Opens the chat model of an endpoint; leaving the block closes it."""
_SOON_S = 0.001
"""Timers may fire early by the resolution of the clock."""


class Model:
    """Answers as long as one of its deployments does.

    A call fails over and is retried with full jitter, a deployment that keeps failing is left alone for a while, a slow
    one is hedged when the settings say so. Each attempt is one call of the meter.
    """

    def __init__(
        self,
        alias: str,
        deployments: Sequence[Deployment],
        settings: ModelSettings,
        *,
        clock: Clock = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """`clock` is that of the deadlines; `uniform` gives numbers in [0, 1)."""
        self.alias = alias
        self._deployments = deployments
        self._fixed_bytes = max(len(json.dumps(one.endpoint.body)) for one in settings.deployments)
        self._retry = settings.retry
        self._percentile = settings.hedge.percentile
        self._times = FirstTokenTimes(settings.hedge.window_calls, settings.hedge.min_calls)
        self._budget = HedgeBudget(settings.hedge.max_share)
        self._clock = clock
        self._uniform = uniform
        first = min(deployments, key=lambda deployment: (deployment.order, -deployment.weight))
        self.priced_as = first.provider, first.model
        """Provider and model of the deployment that is asked first when all are well."""

    @property
    def asked(self) -> frozenset[tuple[str, str]]:
        """Provider and model of every deployment."""
        return frozenset((deployment.provider, deployment.model) for deployment in self._deployments)

    def worst(self, request: ChatRequest) -> TokenUsage:
        """More tokens than one call can use, at any deployment."""
        return worst_case(request, self._fixed_bytes)

    async def complete(
        self, request: ChatRequest, meter: Meter, deadline: float, *, streamed: bool = True
    ) -> AsyncGenerator[str | Completion, None]:
        """Yields the answer's text as it comes, if `streamed`, and, once every attempt is settled, the completion.

        It fails over until something is out, and after that ends with what happened.

        Args:
            request: what is asked.
            meter: each attempt's reservation and tab.
            deadline: when the answer comes too late, on time.monotonic()'s clock; no attempt begins after it.
            streamed: whether anybody sees the text as it comes.

        Raises:
            NoRoom: as the meter; never retried.
            Rejected: every deployment that was asked refuses the request.
            Busy: MODEL_UNAVAILABLE: no deployment answered, each one's reason is in the message. MODEL_SATURATED: no
                deployment has room in its queue. ANSWER_CUT_OFF: the answer broke off after it had begun. Or as the
                meter.
        """
        call = Call(request, self.worst(request), meter, deadline)
        attempts = Attempts(self._retry, deadline)
        begun = False
        while True:
            deployment, last_resort = await self._next(attempts)
            try:
                async with aclosing(self._attempt(call, deployment, attempts, last_resort)) as pieces:
                    async for piece in pieces:
                        if streamed or isinstance(piece, Completion):
                            begun = True
                            yield piece
            except AttemptFailed as failed:
                if begun:
                    raise cut_off(failed.failure) from failed
                self._note(attempts, failed)
            else:
                return

    async def completed(self, request: ChatRequest, meter: Meter, deadline: float) -> Completion:
        """The whole answer. As nobody has seen any of it before, it fails over to the very end.

        Takes and raises what `complete` does.
        """
        async with aclosing(self.complete(request, meter, deadline, streamed=False)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Completion):
                    return piece
        raise RuntimeError("an attempt ends with its completion or a failure")

    async def _next(self, attempts: Attempts) -> tuple[Deployment, bool]:
        """Waits until the next attempt may be made: whose it is and whether that is a last resort.

        Raises what the request fails with when there is none.
        """
        while True:
            now = self._clock()
            standings = [deployment.standing(now) for deployment in self._deployments]
            choice = attempts.choose(standings, now, self._uniform())
            if choice is None:
                raise attempts.conclusion(self.alias, standings, now)
            if choice.at - now < _SOON_S:
                return self._deployments[choice.position], choice.last_resort
            # Whoever's circuit lets calls through again before that may be the better choice.
            reopening = (standing.open_until for standing in standings if now < standing.open_until < choice.at)
            await asyncio.sleep(max(_SOON_S, min(reopening, default=choice.at) - now))

    def _attempt(
        self, call: Call, deployment: Deployment, attempts: Attempts, last_resort: bool
    ) -> AsyncGenerator[str | Completion, None]:
        if self._percentile is None:
            return deployment.attempt(call, last_resort=last_resort)
        self._budget.earn()
        after_s = self._times.percentile(self._percentile)
        if after_s is None or last_resort:
            return deployment.attempt(call, self._times.record, last_resort=last_resort)
        return self._hedged(call, deployment, attempts, after_s)

    async def _hedged(
        self, call: Call, first: Deployment, attempts: Attempts, after_s: float
    ) -> AsyncGenerator[str | Completion, None]:
        async with Race() as race:
            race.enter(first.attempt(call, self._times.record))
            try:
                async with asyncio.timeout(after_s):
                    await race.leader()
            except TimeoutError:
                if (second := self._second(attempts, first)) is not None:
                    race.enter(second.attempt(call, self._times.record))
            try:
                if await race.leader() > 0:
                    self._times.record(after_s)
                async with aclosing(race.pieces()) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                for failed in race.failed:
                    self._note(attempts, failed)

    def _second(self, attempts: Attempts, first: Deployment) -> Deployment | None:
        """Whom to ask besides; nobody who would make it wait."""
        now = self._clock()
        others = [deployment for deployment in self._deployments if deployment is not first]
        standings = [deployment.standing(now) for deployment in others]
        choice = attempts.choose(standings, now, self._uniform())
        if choice is None or choice.at > now or choice.last_resort or not standings[choice.position].free:
            return None
        if not self._budget.spend():
            return None
        return others[choice.position]

    def _note(self, attempts: Attempts, failed: AttemptFailed) -> None:
        name, failure = failed.deployment.name, failed.failure
        attempts.failed(name, failure, self._clock(), self._uniform(), saturated=failed.saturated)


@asynccontextmanager
async def opened(alias: str, settings: ModelSettings, open_chat: Open = open_model) -> AsyncGenerator[Model, None]:
    """Opens an alias with its deployments, closes them in reverse."""
    async with AsyncExitStack() as stack:
        deployments = []
        for deployment in settings.deployments:
            chat = await stack.enter_async_context(open_chat(deployment.endpoint))
            deployments.append(Deployment(chat, deployment, settings))
        yield Model(alias, deployments, settings)
