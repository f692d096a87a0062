"""The price book as a file: our own prices and mark-ups, from when to when. docs/prices.md describes it."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from services.contracts.document_problems import Kind, instead, misfit, told_at_once
from services.contracts.documents import Node, Problem, UnreadableError, plain, read, shown
from services.contracts.failures import Rejected
from services.contracts.price import Fallback, Price
from services.contracts.tenants import TENANT_ID_PATTERN

ANY = "*"
"""Every tenant, while it has no mark-up of its own."""
ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = datetime(2200, 1, 1, tzinfo=UTC)
MOST_ENTRIES = 5000
MOST_TIERS = 8


def _moment(value: object) -> object:
    if isinstance(value, datetime):
        return value
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        raise _no_moment() from None
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    if not ALWAYS <= time <= NEVER:
        raise _no_moment()
    return time


def _no_moment() -> Exception:
    return misfit("must be a day or a time in UTC from 1970 to 2200, such as 2026-11-01 or 2026-11-01T12:30:00Z")


Moment = Annotated[datetime, BeforeValidator(_moment)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Dated(_Part):
    start: Moment = Field(default=ALWAYS, alias="from")
    """Its first moment."""
    end: Moment = Field(default=NEVER, alias="until")
    """The moment from which on it no longer counts."""

    @model_validator(mode="after")
    def _in_order(self) -> "_Dated":
        if self.start >= self.end:
            raise misfit("'until' must be later than 'from': it is the first moment that is no longer covered", "until")
        return self


class Tier(_Part):
    """What calls with many input tokens cost: all their tokens, not those above alone."""

    above_input_tokens: int = Field(ge=1, le=100_000_000, strict=True)
    per_million: Price


class Entry(_Dated):
    """What a model's calls cost for a while."""

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,119}$")
    """As <provider>/<model>."""
    per_million: Price
    tiers: tuple[Tier, ...] = Field(default=(), max_length=MOST_TIERS)
    batch_discount_percent: Decimal = Field(default=Decimal(0), ge=0, le=100, decimal_places=4)

    @model_validator(mode="after")
    def _rising(self) -> "Entry":
        for at, (lower, higher) in enumerate(pairwise(self.tiers), 1):
            if higher.above_input_tokens <= lower.above_input_tokens:
                raise misfit("'above_input_tokens' must rise from tier to tier", "tiers", at, "above_input_tokens")
        return self

    def price_of(self, input_tokens: int) -> Price:
        """The price of a call with so many input tokens."""
        price = self.per_million
        for tier in self.tiers:
            if input_tokens <= tier.above_input_tokens:
                break
            price = tier.per_million
        return price

    @property
    def batch_share(self) -> Decimal:
        """Which part of the price a call in a batch costs."""
        return 1 - self.batch_discount_percent / 100


class Markup(_Dated):
    """How much more than their cost a tenant is charged for calls."""

    tenant: str = Field(pattern=rf"^\*$|{TENANT_ID_PATTERN}")
    """ANY: every tenant at times for which it has none of its own."""
    percent: Decimal = Field(ge=-100, le=1000, decimal_places=4)


class BookFile(_Part):
    """A version of the price book."""

    prices: tuple[Entry, ...] = Field(default=(), max_length=MOST_ENTRIES)
    markups: tuple[Markup, ...] = Field(default=(), max_length=MOST_ENTRIES)
    fallback: Fallback | None = None
    """For models that nobody prices; None: the platform's own."""


_KIND = Kind(
    "the price book",
    BookFile,
    parts={
        "per_million": Price,
        "fallback": Fallback,
        "tiers": Tier,
        "prices": Entry,
        "markups": Markup,
    },
    reasons={
        "string_pattern_mismatch": "must be <provider>/<model>, as openai/gpt-4o; of a mark-up a tenant's id, or '*'",
        "decimal_max_places": "is too fine: at most {decimal_places} decimals",
        "decimal_type": "must be a number such as 0.25",
        "decimal_parsing": "must be a number such as 0.25",
        "greater_than": "must be more than {gt}: a model that nobody prices is never free",
    },
)
_D = TypeVar("_D", bound=_Dated)


def parse_price_file(text: str, tenants: Collection[str] | None = None) -> BookFile:
    """The price book in `text`, YAML or JSON; its mark-ups may name `tenants` alone, anyone when they are not known.

    Raises:
        Rejected: it is wrong; the message tells everything that is, "line 12: …; line 14: …".
    """
    book, problems = check_price_file(text, tenants)
    if book is None:
        raise Rejected("PRICES_INVALID", told_at_once(problems))
    return book


def check_price_file(text: str, tenants: Collection[str] | None = None) -> tuple[BookFile | None, list[Problem]]:
    """As parse_price_file: the price book, None if anything is wrong, and what is wrong in the order of lines."""
    try:
        document, problems = read(text, exact=True)
    except UnreadableError as error:
        return None, [error.problem]
    book: BookFile | None = None
    try:
        book = BookFile.model_validate(plain(document))
    except ValidationError as error:
        problems += _KIND.problems(document, error)
    problems += _overlaps(_readable(document, "prices", Entry), lambda entry: entry.model)
    markups = list(_readable(document, "markups", Markup))
    problems += _overlaps(markups, lambda markup: markup.tenant)
    if tenants is not None:
        problems += _unknown_tenants(markups, tenants)
    return (None if problems else book), sorted(set(problems))


def _readable(document: Node, field: str, kind: type[_D]) -> Iterable[tuple[int, _D]]:
    """Those entries of a list that are right by themselves, with their lines."""
    listed = document.value.get(field) if isinstance(document.value, dict) else None
    for node in listed.value[:MOST_ENTRIES] if listed is not None and isinstance(listed.value, list) else ():
        try:
            yield node.line, kind.model_validate(plain(node))
        except ValidationError:
            continue


def _unknown_tenants(markups: Iterable[tuple[int, Markup]], tenants: Collection[str]) -> Iterable[Problem]:
    for line, markup in markups:
        if markup.tenant != ANY and markup.tenant not in tenants:
            yield Problem(line, f"there is no tenant {shown(markup.tenant)}{instead(markup.tenant, tenants)}")


def _overlaps(entries: Iterable[tuple[int, _D]], name_of: Any) -> list[Problem]:
    by_name: dict[str, list[tuple[int, _D]]] = defaultdict(list)
    for line, entry in entries:
        by_name[name_of(entry)].append((line, entry))
    return [problem for name, dated in by_name.items() for problem in _overlaps_of(name, dated)]


def _overlaps_of(name: str, dated: Sequence[tuple[int, _Dated]]) -> Iterable[Problem]:
    latest_line, latest = min(dated, key=lambda one: one[1].start)
    for line, entry in sorted(dated, key=lambda one: one[1].start):
        if entry is latest:
            continue
        if entry.start < latest.end:
            first, second = sorted((line, latest_line))
            yield Problem(second, f"{shown(name)} has another entry for some of these days on line {first}")
        if entry.end > latest.end:
            latest_line, latest = line, entry
