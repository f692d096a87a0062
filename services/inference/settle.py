"""Settling: what every stage used is priced and told before the caller gets its answer, and also when it left."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from services.contracts.events import Event, TokenUsage, UsageSettled, truncated_to_millis, usage_event_id
from services.contracts.failures import Busy
from services.contracts.prices import Cost
from services.contracts.tenants import TenantId
from services.inference.answers import Question
from services.inference.drafts import Stage, Tab
from services.runtime.seen_through import seen_through
from services.runtime.telemetry import log

PriceOf = Callable[[str, str, TokenUsage, datetime], Cost]
"""Provider, model, tokens, time of the call."""


class Settlement:
    """Prices and tells usage."""

    def __init__(self, tell: Callable[[Event], Awaitable[None]], price_of: PriceOf, timeout: timedelta) -> None:
        self._tell = tell
        self._price_of = price_of
        self._timeout_s = timeout.total_seconds()

    async def settle(
        self,
        tenant: TenantId,
        question: Question,
        stage: Stage,
        tab: Tab,
        *,
        started_at: datetime,
        latency: timedelta,
        succeeded: bool,
    ) -> Cost:
        """Tells what `stage` put on its `tab`, cancelled or not; returns its cost, 0 when it made no call.

        Raises:
            Busy: it could not be told; the call must fail rather than go unaccounted.
        """
        tokens = tab.tokens
        at = truncated_to_millis(started_at)
        cost = self._price_of(stage.provider, stage.model, tokens or TokenUsage(), at)
        if tokens is None:
            return cost
        call = UsageSettled(
            event_id=usage_event_id(tenant, question.call_id, "inference", stage.name),
            event_time=at,
            tenant=tenant,
            request_id=question.request_id,
            service="inference",
            operation=stage.operation,
            stage=stage.name,
            provider=stage.provider,
            model=stage.model,
            feature=question.feature,
            tokens=tokens,
            cost_usd=cost.usd,
            price_source=cost.price_source,
            estimated=tab.estimated or cost.estimated,
            succeeded=succeeded,
            latency_ms=round(latency.total_seconds() * 1000),
        )
        await seen_through(self._told(call))
        return cost

    async def _told(self, usage: UsageSettled) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._tell(usage)
        except (Busy, TimeoutError) as error:
            # The event holds counts and names only. With it in the log, an operator can tell it again: its id makes
            # telling it twice harmless.
            log.error("usage not told", usage=usage.model_dump_json())
            raise Busy("USAGE_NOT_TOLD", "what the call used could not be recorded, so it is refused; retry") from error


def now() -> datetime:
    """The time of a call that starts now."""
    return datetime.now(UTC)
