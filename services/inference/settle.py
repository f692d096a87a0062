"""Settling: every paid call is reserved before it is made, and priced and told after it, whoever has left meanwhile."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from uuid import UUID

from services.contracts.events import TokenUsage, UsageSettled, truncated_to_millis, usage_event_id
from services.contracts.failures import Busy
from services.contracts.price import read_and_written
from services.contracts.prices import Cost, PriceBook
from services.contracts.tenants import TenantId
from services.inference.admission.admission import Entry
from services.inference.admission.holds import Hold
from services.inference.admission.ledger import Reservation
from services.inference.answers import Question
from services.inference.drafts import NoRoom, Stage, Tab, Task
from services.runtime.outbox import Later, Tell
from services.runtime.seen_through import seen_through
from services.runtime.telemetry import log

REQUEST_LIMIT, STAGE_LIMIT = "MAX_COST_REACHED", "STAGE_MAX_COST_REACHED"
"""Why a call is not made: the caller's own limit, the policy's for the stage. A budget has reasons of its own."""
USAGE_NOT_TOLD = "USAGE_NOT_TOLD"
"""Why a request fails whose usage the bus does not take."""
_TELL_AGAIN_S = 0.5
_BYTES_PER_TOKEN = 4
"""Of a prompt, about; its worst case counts every byte."""


@dataclass(slots=True)
class Spending:
    """What one request may spend and has spent."""

    max_usd: Decimal | None = None
    """None: no limit of its own."""
    usd: Decimal = Decimal(0)
    open_usd: Decimal = Decimal(0)
    """What calls that are under way may come to."""

    def check_room(self, worst_usd: Decimal) -> None:
        """Raises ``NoRoom`` when a call that may cost `worst_usd` could pass the request's limit."""
        if self.max_usd is not None and self.usd + self.open_usd + worst_usd > self.max_usd:
            left = self.max_usd - self.usd - self.open_usd
            message = f"the call could cost ${worst_usd:f} and ${left:f} are left of max_cost_usd"
            raise NoRoom(REQUEST_LIMIT, message)


@dataclass(frozen=True, slots=True)
class SettledCall:
    """What one call of a model came to."""

    tokens: TokenUsage
    cost_usd: Decimal
    estimated: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """What would have answered without a cascade, and from what."""

    stage: Stage
    task: Task


@dataclass(frozen=True, slots=True)
class Account:
    """On whose account the calls of one request go."""

    tenant: TenantId
    question: Question
    entry: Entry
    spending: Spending

    def spent_on_search(self, cost_usd: Decimal) -> None:
        """Counts what retrieval, which tells its own usage, has spent for the request."""
        self.spending.usd += cost_usd
        self.entry.spent(cost_usd)


class Settlement:
    """Prices and tells the calls of stages."""

    def __init__(
        self, tell: Tell, prices: PriceBook, timeout: timedelta, check_room: Callable[[], None] = lambda: None
    ) -> None:
        self.check_room = check_room
        """Raises ``Busy`` when what a request uses could not be told: to be called before it is admitted."""
        self._tell = tell
        self._prices = prices
        self._timeout_s = timeout.total_seconds()

    def hold(self, tenant: TenantId, question: Question, stage: Stage, task: Task) -> Hold:
        """What the first call of `stage` must have reserved."""
        return self.hold_of(tenant, question, stage, 0, *stage.worst(task))

    def meter(
        self, account: Account, stage: Stage, max_call_usd: Decimal | None = None, reference: Reference | None = None
    ) -> "StageMeter":
        """The meter of `stage`, none of whose calls may cost more than `max_call_usd`.

        The first of them says what `reference` would have cost instead.
        """
        return StageMeter(self, account, stage, max_call_usd, reference)

    async def settle(self, call: "_Call", account: Account, reference: Reference | None) -> SettledCall | None:
        """Tells what the call put on its tab and settles its reservation; None when it was no call.

        What `reference` would have cost is told with it.

        Raises:
            Busy: it could not be told; the request must fail rather than go unaccounted.
        """
        tab = call.tab
        account.entry.used(call.reservation, 0 if tab.tokens is None else tab.tokens.in_all)
        if tab.tokens is None:
            call.reservation.settle_soon(Decimal(0))
            return None
        hold = call.hold.event
        cost = self._prices.cost(hold.provider, hold.model, tab.tokens, hold.event_time)
        # It is charged as told, but somebody should look at it: nothing says that it is true.
        beyond = cost.usd > call.hold.worst_usd
        if beyond:
            log.error("a provider told more than its call could use", provider=hold.provider, model=hold.model)
        settled = SettledCall(tab.tokens, cost.usd, tab.estimated or cost.estimated or beyond)
        account.spending.usd += cost.usd
        usage = hold.model_copy(
            update={
                "tokens": tab.tokens,
                "cost_usd": cost.usd,
                "price_source": cost.price_source,
                "estimated": settled.estimated,
                "tokens_estimated": tab.estimated or beyond,
                "provisional": False,
                "succeeded": call.succeeded,
                "latency_ms": round((time.monotonic() - call.started) * 1000),
                "without_cache_usd": self._without_cache(hold, tab.tokens),
                **self._compared(hold, tab, cost, reference),
            }
        )
        # What is settled is told, or nobody would tell it should this process die in between.
        try:
            later = await self._told(usage)
        except Busy:
            call.reservation.settle_after(partial(self._told_at_last, usage), cost.usd)
            raise
        if later is None:
            call.reservation.settle_soon(cost.usd)
        else:
            # A disk may be lost with its machine: until the bus has the usage, the reservation is the call's trace.
            call.reservation.settle_after(later, cost.usd)
        return settled

    def _without_cache(self, call: UsageSettled, tokens: TokenUsage) -> Decimal | None:
        if not tokens.cache_read and not tokens.cache_write:
            return None
        return self._prices.without_cache(call.provider, call.model, tokens, call.event_time)

    def _compared(
        self, call: UsageSettled, tab: Tab, cost: Cost, reference: Reference | None
    ) -> dict[str, str | Decimal | TokenUsage]:
        """What the reference would have cost for the request: it reads as much, by estimate, and answers as long."""
        if reference is None or tab.tokens is None:
            return {}
        if reference.stage.name == call.stage:
            return _told_reference(call.provider, call.model, cost)
        provider, model, worst = reference.stage.worst(reference.task)
        if reference.stage.operation == "embeddings":
            tokens = worst
        elif call.operation == "chat":
            tokens = read_and_written(tab.tokens)
        else:
            tokens = TokenUsage(uncached_input=worst.uncached_input // _BYTES_PER_TOKEN, output=tab.answer_tokens)
        estimate = self._prices.cost(provider, model, tokens, call.event_time)
        return _told_reference(provider, model, estimate) | {"reference_tokens": tokens}

    def hold_of(
        self,
        tenant: TenantId,
        question: Question,
        stage: Stage,
        number: int,
        provider: str,
        model: str,
        worst: TokenUsage,
    ) -> Hold:
        """What call `number` of `stage`, from 0, must have reserved."""
        at = truncated_to_millis(datetime.now(UTC))
        cost = self._prices.most(provider, model, worst, at)
        attribution = question.attribution
        event = UsageSettled(
            event_id=_event_id(tenant, question.call_id, stage.name, number),
            event_time=at,
            tenant=tenant,
            request_id=question.request_id,
            service="inference",
            operation=stage.operation,
            stage=stage.name,
            provider=provider,
            model=model,
            feature=attribution.feature,
            key_id=attribution.key_id,
            outcome_id=attribution.outcome_id,
            user=attribution.user,
            labels=dict(attribution.labels),
            tokens=worst,
            cost_usd=cost.usd,
            price_source=cost.price_source,
            estimated=True,
            provisional=True,
            succeeded=False,
        )
        return Hold(event, cost.usd)

    async def _told(self, usage: UsageSettled) -> Later | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._tell(usage)
        except (Busy, TimeoutError) as error:
            # The event holds counts and names only. It is told again until the process ends; with it in the log, an
            # operator can do so even then: its id makes telling it twice harmless.
            log.error("usage not told yet", usage=usage.model_dump_json())
            raise Busy(USAGE_NOT_TOLD, "what the call used could not be recorded, so it is refused; retry") from error

    async def _told_at_last(self, usage: UsageSettled) -> None:
        while True:
            await asyncio.sleep(_TELL_AGAIN_S)
            with suppress(Busy, TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    later = await self._tell(usage)
                if later is not None:
                    await later()
                return


@dataclass(slots=True)
class _Call:
    """One call of a model, from its reservation to its settling."""

    hold: Hold
    reservation: Reservation
    tab: Tab = field(default_factory=Tab)
    started: float = field(default_factory=time.monotonic)
    succeeded: bool = False


class StageMeter:
    """A ``Meter``: the calls of one stage on one request's account."""

    def __init__(
        self,
        settlement: Settlement,
        account: Account,
        stage: Stage,
        max_call_usd: Decimal | None,
        reference: Reference | None,
    ) -> None:
        self._settlement = settlement
        self._account = account
        self._stage = stage
        self._max_call_usd = max_call_usd
        self._reference = reference
        self._begun = 0
        self.calls: list[SettledCall] = []
        """Those that were made and settled."""

    @asynccontextmanager
    async def call(self, provider: str, model: str, worst: TokenUsage) -> AsyncGenerator[Tab, None]:
        """As ``Meter.call``."""
        account = self._account
        hold = self._reserved_on_entering(provider, model, worst) or self._settlement.hold_of(
            account.tenant, account.question, self._stage, self._begun, provider, model, worst
        )
        self._begun += 1
        account.spending.check_room(hold.worst_usd)
        if self._max_call_usd is not None and hold.worst_usd > self._max_call_usd:
            message = (
                f"the call could cost ${hold.worst_usd:f}, and the policy allows the stage ${self._max_call_usd:f}"
            )
            raise NoRoom(STAGE_LIMIT, message)
        account.spending.open_usd += hold.worst_usd
        try:
            call = _Call(hold, await account.entry.reserve(hold))
            try:
                yield call.tab
                call.succeeded = True
            finally:
                await seen_through(self._settle(call))
        finally:
            account.spending.open_usd -= hold.worst_usd

    def _reserved_on_entering(self, provider: str, model: str, worst: TokenUsage) -> Hold | None:
        first = self._account.entry.first
        if first is None or self._begun:
            return None
        event = first.hold.event
        same = (event.stage, event.provider, event.model) == (self._stage.name, provider, model)
        return first.hold if same and event.tokens == worst else None

    async def _settle(self, call: _Call) -> None:
        reference = None if self.calls else self._reference
        if (settled := await self._settlement.settle(call, self._account, reference)) is not None:
            self.calls.append(settled)


def _told_reference(provider: str, model: str, cost: Cost) -> dict[str, str | Decimal | TokenUsage]:
    return {
        "reference_model": f"{provider}/{model}",
        "reference_usd": cost.usd,
        "reference_price_source": cost.price_source,
    }


def _event_id(tenant: TenantId, call_id: UUID, stage: str, number: int) -> UUID:
    return usage_event_id(tenant, call_id, "inference", stage, *((number,) if number else ()))
