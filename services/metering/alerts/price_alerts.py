"""Alerts about prices that are missing: calls that the fallback priced, or that cost nothing.

Each call counts to its own month: what is told in November of October's last minute is October's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.contracts.events import AlertRaised
from services.contracts.prices import sql_is_set
from services.metering.alerts.alert import PLATFORM, alert, dollars
from services.metering.alerts.due import LOOK_BACK
from services.metering.clickhouse import Connection

MOST_MODELS: Final = 200
"""On a page, each with its month."""

Model = tuple[str, str, int]
"""Its provider, its name, and a month as 202611."""
_FIRST: Final[Model] = ("", "", 0)
_OVERLAP: Final = timedelta(minutes=5)
"""Rows are looked at again for so long: another process may store some with an older time."""

# A price of 0 of our own says that a model is free; what else comes to nothing for tokens is a price that is missing.
_UNPRICED = f"""(startsWith(price_source, 'fallback') OR cost_usd = 0 AND NOT {sql_is_set("price_source")}
        AND uncached_input_tokens + cache_read_tokens + cache_write_tokens + output_tokens + reasoning_tokens > 0)"""
# Without FINAL, as only the newest rows are looked at: a row that was replaced meanwhile does no harm here.
_LATELY = f"""
SELECT DISTINCT provider, model, toYYYYMM(event_time) AS month
FROM headwater.usage_events
WHERE ingested_at > fromUnixTimestamp64Milli({{since_ms:Int64}}, 'UTC')
    AND (provider, model, month) > ({{provider:String}}, {{model:String}}, {{month:UInt32}})
    AND {_UNPRICED}
ORDER BY provider, model, month
LIMIT {{most:UInt32}}
"""  # noqa: S608 - put together from constants
_CALLS = f"""
SELECT provider, model, toYYYYMM(event_time) AS month, count(), sum(cost_usd), uniqExact(tenant_id),
    countIf(NOT startsWith(price_source, 'fallback'))
FROM headwater.usage_events FINAL
WHERE toYYYYMM(event_time) IN {{months:Array(UInt32)}}
    AND (provider, model, month) IN
        arrayZip({{providers:Array(String)}}, {{models:Array(String)}}, {{months:Array(UInt32)}})
    AND {_UNPRICED}
GROUP BY provider, model, month
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class Place:
    """How far the models without a price were looked at."""

    since: datetime
    """Usage that was stored before is done with."""
    began: datetime
    """The first page of what was stored since is not older."""
    after: Model = _FIRST
    """The last one of the page before."""

    @classmethod
    def first(cls, now: datetime) -> "Place":
        """Of a worker that has just started: what was stored this month, and at its turn some days of the last."""
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return cls(min(month, now - LOOK_BACK), now)

    def next(self, last: Model | None, now: datetime) -> "Place":
        """After a page that ended with `last`; None: nothing is left but what was stored meanwhile."""
        return replace(self, after=last) if last else Place(self.began - _OVERLAP, now)


async def missing_prices(
    newest: Connection, connection: Connection, place: Place, is_told: Callable[[UUID], bool]
) -> tuple[list[AlertRaised], Model | None]:
    """A page of models that calls were priced without, or as if free, one alert a model and month.

    With the last one of the page, None if there is no other page. `newest` sees rows as they were stored, `connection`
    those that count.
    """
    after = dict(zip(("provider", "model", "month"), place.after, strict=True))
    since_ms = round(place.since.timestamp() * 1000)
    rows = await newest.rows(_LATELY, {"since_ms": since_ms, **after, "most": MOST_MODELS})
    lately: list[Model] = [(provider, model, month) for provider, model, month in rows]
    last = lately[-1] if len(lately) == MOST_MODELS else None
    untold = [each for each in lately if not is_told(_price_missing(*each, 0, Decimal(0), 0, 0).event_id)]
    if not untold:
        return [], last
    providers, models, months = (list(each) for each in zip(*untold, strict=True))
    rows = await connection.rows(_CALLS, {"providers": providers, "models": models, "months": months})
    return [_price_missing(*row) for row in rows], last


def _price_missing(
    provider: str, model: str, month: int, calls: int, cost_usd: Decimal, tenants: int, free: int
) -> AlertRaised:
    name = f"{provider}/{model}"
    priced_at = "$0" if free and free == calls else "the fallback or at $0" if free else "the fallback"
    return alert(
        "price_missing",
        PLATFORM,
        severity="warning",
        about=name[:200],
        period=str(month),
        message=f"{name[:200]} has no price: {calls} calls of {month // 100}-{month % 100:02} so far are accounted at "
        f"{priced_at}, ${dollars(cost_usd)} in all; put its price and re-rate",
        facts={"calls": str(calls), "cost_usd": f"{cost_usd:f}", "tenants": str(tenants), "free_calls": str(free)},
        variant=name[200:],
    )
