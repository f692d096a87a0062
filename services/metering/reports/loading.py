"""Loading what costs are compared with: revenue and outcomes, from outside the platform.

The rows of a call are one insert into one partition: all of them are stored or none. A row that is loaded again
replaces the one before.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

from services.contracts.failures import Missing, Rejected
from services.contracts.tenants import TenantId, tenant_id
from services.metering.clickhouse import Connection
from services.runtime.buckets import Bucket

DEFAULT_SOURCE: Final = "revenue"
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Revenue:
    """What a tenant pays for a month."""

    place: str
    """Where it was read, for messages: line 7."""
    tenant: TenantId
    month: date
    """Its first day."""
    source: str
    amount_usd: Decimal

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies it."""
        return (self.tenant, f"{self.month:%Y-%m}", self.source)


@dataclass(frozen=True)
class Outcome:
    """What became of a business outcome."""

    place: str
    """Where it was read, for messages: line 7."""
    tenant: TenantId
    outcome_id: str
    succeeded: bool
    value_usd: Decimal | None
    at: datetime

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies it."""
        return (self.tenant, self.outcome_id)


Rows: TypeAlias = Sequence[Revenue] | Sequence[Outcome]


def tenant_at(place: str, text: str) -> TenantId:
    """The tenant that `text` names.

    Raises:
        Rejected: it can be no tenant's id.
    """
    try:
        return tenant_id(text)
    except Rejected as rejected:
        raise Rejected(rejected.reason, f"{place}: {rejected.message}") from rejected


def check_rows(rows: Rows) -> None:
    """Raises ``Rejected`` when two rows are the same one, or a time is absurd."""
    places: dict[tuple[str, ...], str] = {}
    for row in rows:
        if first := places.get(row.key):
            raise Rejected("ROW_TWICE", f"{row.place} is the same row as {first}: {', '.join(row.key)}; leave one out")
        places[row.key] = row.place
        if isinstance(row, Outcome) and not _EARLIEST <= row.at < _LATEST:
            raise Rejected("ROW_TIME_ABSURD", f"{row.place}: the time is not of this century")


class Loading:
    """Stores what is loaded. Every method raises ``Busy`` when ClickHouse or the bus is away."""

    def __init__(self, connection: Connection, tenants: Bucket) -> None:
        self._connection = connection
        self._tenants = tenants
        self._one_at_a_time = asyncio.Lock()

    async def revenue(self, rows: Sequence[Revenue]) -> None:
        """Stores what tenants pay.

        Raises:
            Rejected: a row is there twice.
            Missing: a row names a tenant that there is not.
        """
        await self._check(rows)
        columns: dict[str, list[Any]] = {
            "tenant_id": [row.tenant for row in rows],
            "month": [row.month for row in rows],
            "source": [row.source for row in rows],
            "amount_usd": [row.amount_usd for row in rows],
        }
        await self._store("headwater.revenue", columns)

    async def outcomes(self, rows: Sequence[Outcome]) -> None:
        """Stores what became of outcomes.

        Raises:
            Rejected: a row is there twice, or its time is absurd.
            Missing: a row names a tenant that there is not.
        """
        await self._check(rows)
        columns: dict[str, list[Any]] = {
            "tenant_id": [row.tenant for row in rows],
            "outcome_id": [row.outcome_id for row in rows],
            "succeeded": [row.succeeded for row in rows],
            "value_usd": [row.value_usd for row in rows],
            "at": [row.at for row in rows],
        }
        await self._store("headwater.outcomes", columns)

    async def _check(self, rows: Rows) -> None:
        check_rows(rows)
        first_places: dict[TenantId, str] = {}
        for row in rows:
            first_places.setdefault(row.tenant, row.place)
        records = await asyncio.gather(*map(self._tenants.get, first_places))
        for (tenant, place), record in zip(first_places.items(), records, strict=True):
            if record is None:
                raise Missing("TENANT_UNKNOWN", f"{place}: there is no tenant {tenant}: create it first")

    async def _store(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        # The version grows from what is stored and not from the clock, which may be set back.
        async with self._one_at_a_time:
            version = (await self._connection.rows(f"SELECT max(version) + 1 FROM {table}"))[0][0]  # noqa: S608
            count = len(next(iter(columns.values())))
            await self._connection.insert(table, {**columns, "version": [version] * count})
