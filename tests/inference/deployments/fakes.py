"""Deployments that do as they are told, a meter that counts, and time that passes as soon as everybody waits for it."""

import asyncio
import random
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Failure
from services.inference.deployments.deployment import Deployment
from services.inference.deployments.model import Model
from services.inference.deployments.settings import DeploymentSettings, ModelSettings
from services.inference.drafts import Tab
from services.inference.providers.chat import ChatRequest, Completion, FinishReason, Message

T = TypeVar("T")

REQUEST = ChatRequest((Message("user", "what is the notice period?"),), max_output_tokens=100)
DONE = Completion("two weeks", FinishReason.STOP)
ENDPOINT = {"protocol": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
FAR = 1e9


class _NoWait(selectors.DefaultSelector):
    def __init__(self, pass_time: Callable[[float], None]) -> None:
        super().__init__()
        self._pass_time = pass_time

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for what will never happen")
        if not (ready := super().select(0)):
            self._pass_time(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock stands still while anything can run and jumps to the next timer when nothing can."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_NoWait(self._pass_time))

    def time(self) -> float:
        return self._now

    def _pass_time(self, seconds: float) -> None:
        self._now += seconds


def virtually(test: Coroutine[Any, Any, T]) -> T:
    """Runs it on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(test)


def now() -> float:
    return asyncio.get_running_loop().time()


Step = str | float | Failure | Exception | Completion
"""Text is told, a number of seconds is waited, a failure is raised."""


@dataclass
class FakeChat:
    """Does one script after another, then the last one again and again."""

    scripts: Sequence[Sequence[Step]]
    name: str = "a"
    provider: str = "openai"
    calls: int = 0
    open: int = 0
    model: str = "m"

    async def complete(self, request: ChatRequest, tab: Tab, deadline: float) -> AsyncGenerator[str | Completion, None]:
        script = self.scripts[min(self.calls, len(self.scripts) - 1)]
        self.calls += 1
        self.open += 1
        try:
            for step in script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    tab.put(TokenUsage(uncached_input=10), estimated=True)
                    wait_s = min(step, deadline - now())
                    await asyncio.sleep(wait_s)
                    if wait_s < step:
                        raise Busy("PROVIDER_SLOW", "it did not answer in time")
                else:
                    tab.put(TokenUsage(uncached_input=10, output=2))
                    yield step
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                self.open -= 1


@dataclass
class CountingMeter:
    """Counts reservations; entering and leaving suspend, as with a real bus."""

    refusal: Failure | None = None
    refuse_from: int = 0
    open: int = 0
    begun: int = 0
    settled: list[Tab] = field(default_factory=list)
    succeeded: int = 0
    untold: Failure | None = None

    @asynccontextmanager
    async def call(self, provider: str, model: str, worst: TokenUsage) -> AsyncGenerator[Tab, None]:
        await asyncio.sleep(0)
        self.begun += 1
        if self.refusal is not None and self.begun > self.refuse_from:
            raise self.refusal
        tab = Tab()
        self.open += 1
        try:
            yield tab
            self.succeeded += 1
        finally:
            self.open -= 1
            self.settled.append(tab)
            await asyncio.sleep(0)
            if self.untold is not None:
                raise self.untold


def settings(*names: str, **changes: Any) -> ModelSettings:
    """Deployments of these names, each with the `deployment` settings in `changes`."""
    common = {"endpoint": ENDPOINT, **changes.pop("deployment", {})}
    return ModelSettings.model_validate({"deployments": [{"name": name, **common} for name in names], **changes})


def model(chats: Sequence[FakeChat], uniform: Callable[[], float] | None = None, **changes: Any) -> Model:
    """An alias of these, asked in their order; for use on the virtual clock."""
    chosen = settings(*(chat.name for chat in chats), **changes)
    ordered = [
        deployment.model_copy(update={"order": order}) if "orders" not in changes else deployment
        for order, deployment in enumerate(chosen.deployments)
    ]
    return assembled(chats, ordered, chosen, uniform or random.Random(7).random)


def assembled(
    chats: Sequence[FakeChat],
    deployments: Sequence[DeploymentSettings],
    chosen: ModelSettings,
    uniform: Callable[[], float],
) -> Model:
    """An alias of these."""
    pairs = zip(chats, deployments, strict=True)
    made = [Deployment(chat, deployment, chosen, now) for chat, deployment in pairs]
    return Model("alias", made, chosen, clock=now, uniform=uniform)


async def told(pieces: AsyncGenerator[str | Completion, None]) -> list[str | Completion]:
    """All that comes."""
    return [piece async for piece in pieces]


def busy(reason: str = "PROVIDER_DOWN", after_s: float | None = None) -> Busy:
    """What a provider that is away raises."""
    if after_s is None:
        return Busy(reason, "it is away")
    return Busy(reason, "it is away", retry_after=timedelta(seconds=after_s))
