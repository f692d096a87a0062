"""Rate limits: which windows a request is counted in, and whether it fits. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.contracts.budgets import TRAFFIC, period_end, period_name
from services.contracts.failures import Exhausted
from services.contracts.tenants import TenantId
from services.inference.admission.settings import PlanSettings


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the clock in which a tenant's requests and tokens are counted, packed as TRAFFIC."""

    subject: str
    name: str
    """minute or day."""
    ends_at: datetime
    max_requests: int | None
    max_tokens: int | None

    def has_room(self, total: int) -> bool:
        """Whether a sum is within the limits."""
        return not self.passed(total)

    def passed(self, total: int) -> str:
        """The limit that a sum passes, such as requests_per_minute; empty when it is within all."""
        tokens, requests = TRAFFIC.unpack(total)
        if self.max_requests is not None and requests > self.max_requests:
            return f"requests_per_{self.name}"
        if self.max_tokens is not None and tokens > self.max_tokens:
            return f"tokens_per_{self.name}"
        return ""

    def refusal(self, total: int, now: datetime) -> Exhausted:
        """What a request is told whose sum passes a limit."""
        limit = self.passed(total)
        most = self.max_requests if limit.startswith("requests") else self.max_tokens
        return Exhausted(
            "RATE_LIMITED",
            f"the plan's {limit} of {most} is reached; retry when the {self.name} is over, or ask for a larger plan",
            retry_after=max(self.ends_at - now, timedelta(seconds=1)),
            metadata={"limit": limit, "scope": "tenant", "period": self.subject.rpartition(".")[2]},
        )


def windows(tenant: TenantId, plan: PlanSettings, now: datetime) -> list[Window]:
    """The windows that a request at `now` is counted in."""
    found = []
    if plan.requests_per_minute is not None or plan.tokens_per_minute is not None:
        at = now.astimezone(UTC).replace(second=0, microsecond=0)
        subject = f"rates.v1.{tenant}.{period_name('day', at)}{at.hour:02}{at.minute:02}"
        ends_at = at + timedelta(minutes=1)
        found.append(Window(subject, "minute", ends_at, plan.requests_per_minute, plan.tokens_per_minute))
    if plan.tokens_per_day is not None:
        subject = f"quotas.v1.{tenant}.{period_name('day', now)}"
        found.append(Window(subject, "day", period_end("day", now), None, plan.tokens_per_day))
    return found
