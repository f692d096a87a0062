"""One deployment: a chat model with its slots and its circuit."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Exhausted, Failure
from services.inference.deployments.breaker import Breaker, CallOutcome
from services.inference.deployments.retry import Standing, asked_pause
from services.inference.deployments.settings import DeploymentSettings, ModelSettings
from services.inference.deployments.slots import Slots
from services.inference.drafts import Meter
from services.inference.providers.chat import ChatModel, ChatRequest, Completion
from services.inference.providers.refusals import UNUSABLE
from services.runtime.telemetry import log

Clock = Callable[[], float]
"""Seconds on a monotonic clock."""


@dataclass(frozen=True, slots=True)
class Call:
    """What an alias is asked, for whichever deployment is to answer."""

    request: ChatRequest
    worst: TokenUsage
    """More than one attempt can possibly use."""
    meter: Meter
    deadline: float


class AttemptFailed(Exception):
    """A deployment failed a call. Failures of the meter are none: they are raised as they are and end the request."""

    def __init__(self, deployment: "Deployment", failure: Failure, *, saturated: bool = False) -> None:
        super().__init__(failure.reason)
        self.deployment = deployment
        self.failure = failure
        self.saturated = saturated


class Deployment:
    """Asks one chat model, as often at a time as it may and only while it is well."""

    def __init__(
        self, chat: ChatModel, settings: DeploymentSettings, model: ModelSettings, clock: Clock = time.monotonic
    ) -> None:
        self.name = settings.name
        self.order = settings.order
        self.weight = settings.weight
        self.provider = chat.provider
        self.model = chat.model
        self.slots = Slots(settings.concurrency, settings.queue_length, settings.queue_wait)
        self.breaker = Breaker(model.breaker)
        self._chat = chat
        self._retry_after_cap_s = model.retry.retry_after_cap.total_seconds()
        self._patience_s = model.breaker.patience.total_seconds()
        self._alone_until = 0.0
        self._clock = clock

    def standing(self, now: float) -> Standing:
        """What a choice goes by."""
        breaker = self.breaker
        lets_through = breaker.lets_through(now)
        return Standing(
            self.name,
            self.order,
            self.weight,
            lets_through,
            not lets_through and breaker.shut,
            self.slots.free,
            self._alone_until,
            breaker.open_until,
        )

    async def attempt(
        self, call: Call, on_first_token: Callable[[float], None] | None = None, *, last_resort: bool = False
    ) -> AsyncGenerator[str | Completion, None]:
        """Asks once: yields text as it comes, none of it empty, and the completion last.

        The slot comes before the reservation, so that nothing is reserved in a queue, and everything is settled and
        given back before the completion is told.

        Args:
            call: what is asked.
            on_first_token: told how many seconds the first token took.
            last_resort: whether to ask though the circuit is open, as long as it is not shut.

        Raises:
            AttemptFailed: the deployment is saturated, its circuit is open, or the model failed.
            NoRoom: as the meter.
            Busy: as the meter.
        """
        begun, started = await self._admitted(call, last_resort)
        outcome = CallOutcome.UNKNOWN
        completion: Completion | None = None
        try:
            async with aclosing(self._asked(call)) as pieces:
                async for piece in pieces:
                    if outcome is CallOutcome.UNKNOWN:
                        outcome = CallOutcome.SUCCEEDED
                        if on_first_token is not None:
                            on_first_token(self._clock() - started)
                    if isinstance(piece, Completion):
                        completion = piece
                    else:
                        yield piece
        except AttemptFailed as failed:
            outcome = self._outcome(failed.failure, call, outcome)
            raise
        finally:
            self._ended(begun, outcome, started)
            self.slots.give_back()
        if completion is not None:
            yield completion

    async def _admitted(self, call: Call, last_resort: bool) -> tuple[int, float]:
        """Takes a slot and passes the circuit: what that must be told at the end, and the time."""
        try:
            await self.slots.take(call.deadline - self._clock())
        except Busy as failure:
            raise AttemptFailed(self, failure, saturated=True) from failure
        now = self._clock()
        begun = self.breaker.begin(now, last_resort=last_resort)
        if begun is None:
            self.slots.give_back()
            raise AttemptFailed(self, Busy("CIRCUIT_OPEN", "its circuit opened while the call waited for a slot"))
        return begun, now

    async def _asked(self, call: Call) -> AsyncGenerator[str | Completion, None]:
        completion: Completion | None = None
        async with call.meter.call(self.provider, self.model, call.worst) as tab:
            try:
                async with aclosing(self._chat.complete(call.request, tab, call.deadline)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Completion):
                            completion = piece
                        elif piece:
                            yield piece
                if completion is None:
                    raise Busy("PROVIDER_CUT", "the provider's answer ended without its end")
            except Failure as failure:
                raise AttemptFailed(self, failure) from failure
        yield completion

    def _outcome(self, failure: Failure, call: Call, so_far: CallOutcome) -> CallOutcome:
        now = self._clock()
        pause_s = asked_pause(failure, self._retry_after_cap_s)
        if pause_s:
            self._alone_until = max(self._alone_until, now + pause_s)
        if failure.reason == UNUSABLE:
            log.error(
                "a deployment is unusable: look at its key, its account, its address and its model's name",
                deployment=self.name,
                provider=self.provider,
                model=self.model,
                detail=failure.message,
            )
        if not isinstance(failure, Busy | Exhausted):
            return CallOutcome.SUCCEEDED
        # Callers with too little time must not close a deployment for those who have enough.
        return so_far if now >= call.deadline else CallOutcome.FAILED

    def _ended(self, begun: int, outcome: CallOutcome, started: float) -> None:
        now = self._clock()
        if outcome is CallOutcome.UNKNOWN and now - started >= self._patience_s:
            outcome = CallOutcome.FAILED
        before = self.breaker.state
        self.breaker.end(begun, outcome, now)
        if self.breaker.state is not before:
            state = self.breaker.state.value
            log.warning("circuit changed", deployment=self.name, provider=self.provider, model=self.model, state=state)
