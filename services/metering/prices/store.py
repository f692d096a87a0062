"""The versioned price book on the bus: versions are created once, the newest prices, and every process follows it.

Pricing reads memory alone. A version is in force from the moment the bus has it, by the bus's clock, which also says
when usage was told. A version that cannot be read leaves the one before it where it is and is logged.
"""

import contextlib
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from services.contracts.failures import Busy, Conflict, Missing, Rejected
from services.contracts.price_file import parse_price_file
from services.contracts.prices import PriceBook
from services.runtime.background import background
from services.runtime.buckets import Bucket, Entry
from services.runtime.telemetry import log

DEFAULT_PAGE_SIZE = 100
_PUT_ATTEMPTS = 20


class _Header(BaseModel):
    """What is kept with a version's text."""

    model_config = ConfigDict(frozen=True)

    version: int = Field(ge=1)
    author: str
    created_at: AwareDatetime


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """A version of the price book, as its author wrote it."""

    version: int
    """From 1."""
    author: str
    """The id of the key it was put with."""
    created_at: datetime
    text: str


@dataclass(frozen=True)
class VersionPage:
    """Versions, newest first."""

    versions: list[PriceVersion]
    next_page_token: str


class PriceStore:
    """All versions of the price book."""

    def __init__(self, bucket: Bucket, book: PriceBook) -> None:
        """`book` is kept at the newest version."""
        self._bucket = bucket
        self.book = book
        self._revision = 0
        """Of the bucket, as far as the book has followed it."""
        self._newest_seen = 0

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Keeps the book at the newest version while the context is open.

        Raises:
            Busy: on entering: the bus is away.
        """
        await self.catch_up()
        async with background(self._bucket.follow(self._changed)):
            yield

    async def catch_up(self) -> None:
        """Takes what was put so far: what was told before this call is priced the same ever after by book.as_of.

        Raises:
            Busy: the bus is away.
        """
        revision = await self._bucket.revision()
        if revision > self._revision:
            # All of them: those that are pushed come in no certain order after the bus was away.
            entries, before = await self._bucket.entries(), self.book.version
            for entry in sorted(entries, key=_number):
                self._take(entry)
            self._revision = max(revision, self._revision)
            if self.book.version != before:
                log.info("a price book is current", version=self.book.version)

    async def put(self, text: str, author: str, tenants: Collection[str] | None = None) -> PriceVersion:
        """Keeps `text` as the next version, which prices from now on; the same text as the newest's is that version.

        Its mark-ups may name `tenants` alone; anyone when they are not known.

        Raises:
            Rejected: it is no valid price book; the message tells the lines.
            Busy: the bus is away, or many put versions at the same time.
        """
        parse_price_file(text, tenants)
        for _ in range(_PUT_ATTEMPTS):
            newest = await self._newest()
            if newest is not None and newest.value.partition(b"\n")[2] == text.encode():
                return _read(newest)
            number = 1 if newest is None else _number(newest) + 1
            version = PriceVersion(number, author, datetime.now(UTC), text)
            # Two who put at the same moment cannot both be this version.
            with contextlib.suppress(Conflict):
                await self._bucket.create(_key(number), _written(version))
                # It is kept: if the bus is away now, those who follow it take it later.
                with contextlib.suppress(Busy):
                    await self.catch_up()
                return version
        raise Busy("PRICES_CONTENDED", "others put versions of the price book at the same time; try again")

    async def get(self, version: int = 0) -> PriceVersion:
        """A version; 0 means the newest.

        Raises:
            Missing: there is no such version.
            Rejected: it is there and cannot be read.
        """
        entry = await self._bucket.get(_key(version)) if version else await self._newest()
        if entry is None:
            raise Missing("PRICES_UNKNOWN", "there is no such version; `headwater prices list` tells which there are")
        return _read(entry)

    async def page(self, page_size: int, page_token: str) -> VersionPage:
        """Versions below number `page_token`, empty for all; 0 `page_size` means 100."""
        size = page_size or DEFAULT_PAGE_SIZE
        before = int(page_token) if page_token else None
        versions = [v for v in await self.versions() if before is None or v.version < before][::-1]
        more = len(versions) > size
        return VersionPage(versions[:size], str(versions[size - 1].version) if more else "")

    async def versions(self) -> list[PriceVersion]:
        """All versions, oldest first; those that cannot be read are left out."""
        versions = []
        for entry in await self._bucket.entries():
            try:
                versions.append(_read(entry))
            except Rejected as failure:
                log.error("a stored price book cannot be read", key=entry.key, reason=failure.reason)
        return sorted(versions, key=lambda version: version.version)

    async def _newest(self) -> Entry | None:
        return max(await self._bucket.entries(), key=_number, default=None)

    async def _changed(self, entry: Entry) -> None:
        if not entry.deleted and _number(entry) > self._newest_seen:
            await self.catch_up()

    def _take(self, entry: Entry) -> None:
        if _number(entry) <= self._newest_seen:
            return
        self._newest_seen = _number(entry)
        try:
            version = _read(entry)
            file = parse_price_file(version.text)
        except Rejected as failure:
            log.error(
                "a price book cannot be read; the one before it stays",
                key=entry.key,
                reason=failure.reason,
                detail=failure.message,
            )
            return
        self.book.adopt(version.version, file, entry.stored_at or version.created_at)


def _key(version: int) -> str:
    return f"book.{version}"


def _number(entry: Entry) -> int:
    """The version in its key; 0, which no version has, for a key that is none of ours."""
    number = entry.key.removeprefix("book.")
    return int(number) if number.isdecimal() and len(number) < 10 else 0


def _written(version: PriceVersion) -> bytes:
    header = _Header(version=version.version, author=version.author, created_at=version.created_at)
    return header.model_dump_json().encode() + b"\n" + version.text.encode()


def _read(entry: Entry) -> PriceVersion:
    line, _, text = entry.value.partition(b"\n")
    try:
        header = _Header.model_validate_json(line)
        return PriceVersion(header.version, header.author, header.created_at, text.decode())
    except (ValidationError, UnicodeDecodeError) as error:
        raise Rejected("PRICES_UNREADABLE", "the stored price book cannot be read: put it again") from error
