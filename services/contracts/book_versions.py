"""The versions of the price book, laid out for looking up, and which of them was in force at a time. Pure."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Protocol, TypeVar

from services.contracts.price import Fallback
from services.contracts.price_file import ANY, BookFile, Entry, Markup

FALLBACK_PRICE: Final = Fallback(input=Decimal(10), output=Decimal(30))
"""For a model without a price: high, so that a forgotten price is noticed and a budget errs on the safe side."""

ALWAYS: Final = datetime.min.replace(tzinfo=UTC)
"""Before anything was told."""

MOST_VERSIONS: Final = 1000
"""Remembered; what was told before the oldest of them goes by that."""


class Version:
    """A version of the book."""

    def __init__(self, number: int, file: BookFile) -> None:
        self.number = number
        self.fallback = file.fallback or FALLBACK_PRICE
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        for entry in file.prices:
            self._entries[entry.model].append(entry)
        self._markups: dict[str, list[Markup]] = defaultdict(list)
        for markup in file.markups:
            self._markups[markup.tenant].append(markup)

    def entry(self, key: str, at: datetime) -> Entry | None:
        """The price of model `key` for calls at `at`."""
        entries = self._entries.get(key)
        return _at(entries, at) if entries else None

    @property
    def has_markups(self) -> bool:
        """Whether anybody is ever charged more or less than a call's cost."""
        return bool(self._markups)

    def markup(self, tenant: str, at: datetime) -> Markup | None:
        """What `tenant` is charged more for calls at `at`."""
        return _at(self._markups.get(tenant, ()), at) or _at(self._markups.get(ANY, ()), at)


class Versions:
    """Those of one book, and since when each is in force: until the next one is."""

    def __init__(self, first: Version) -> None:
        self._versions = [first]
        self._since = [ALWAYS]
        self.newest = first
        self.any_markups = first.has_markups
        """One of them has."""

    def add(self, version: Version, since: datetime) -> None:
        """Has `version` follow the others."""
        self._versions.append(version)
        # They count in the order of their numbers, whatever a clock that was set back says.
        self._since.append(max(since, self._since[-1]))
        del self._versions[:-MOST_VERSIONS], self._since[:-MOST_VERSIONS]
        self.newest = version
        self.any_markups = any(one.has_markups for one in self._versions)

    def at(self, time: datetime) -> Version:
        """The one in force at `time`."""
        # Nearly all that is asked for: usage is stored soon after it was told.
        if time >= self._since[-1]:
            return self.newest
        return self._versions[max(0, bisect_right(self._since, time) - 1)]


class _Dated(Protocol):
    @property
    def start(self) -> datetime: ...
    @property
    def end(self) -> datetime: ...


_D = TypeVar("_D", bound=_Dated)


def _at(dated: Iterable[_D], at: datetime) -> _D | None:
    """The one that covers `at`; no two do."""
    for one in dated:
        if one.start <= at < one.end:
            return one
    return None
