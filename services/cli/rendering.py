"""What commands print: plain words, tables, JSON. Nothing a document or a server says reaches the terminal raw."""

import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import IO, Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.contracts.amounts import plain as plain_amount

PIPED_WIDTH = 200
"""Columns when nobody watches: a table that a program reads should not be folded at 80."""

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""What a terminal acts upon rather than shows: control characters, text direction, half characters."""


def clean(text: str) -> str:
    """`text` with every character that steers a terminal made visible; newlines and tabs stay."""
    return _UNPRINTABLE.sub(_visible, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`text`, clean, with every run of white space made one space."""
    return clean(" ".join(text.split()))


def plain(text: str, style: str = "") -> Text:
    """`text` as rich prints it: clean and on one line, never read as markup."""
    return Text(one_line(text), style=style)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def console(stream: IO[str]) -> Console:
    """A console on `stream`; colours only on a terminal that has them and unless NO_COLOR is set."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def print_indented(out: Console, text: Text) -> None:
    """Prints `text` four columns in, wrapped, without the blanks rich's own padding leaves at the end of lines."""
    for line in text.wrap(out, max(20, out.width - 4)):
        line.rstrip()
        line.pad_left(4)
        out.print(line)


def stdout() -> Console:
    """Where results go."""
    return console(sys.stdout)


def stderr() -> Console:
    """Where progress, notes and errors go."""
    return console(sys.stderr)


def note(message: str, *, style: str = "") -> None:
    """Tells something on stderr in one line."""
    err = stderr()
    # Off a terminal a line stays a line, however long: it is read by programs and kept in logs.
    err.print(Text.assemble(("headwater: ", style), one_line(message)), soft_wrap=not err.is_terminal)


def table(*columns: str | tuple[str, str], footer: bool = False) -> Table:
    """An empty table with a header line; a column is its title, or its title and "right", "fold" or "short"."""
    made = Table(
        box=box.SIMPLE if footer else box.SIMPLE_HEAD,
        show_edge=False,
        show_footer=footer,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        footer_style="bold",
        border_style="dim",
    )
    for column in columns:
        title, kind = column if isinstance(column, tuple) else (column, "fold")
        short = kind == "short"
        made.add_column(
            title,
            min_width=len(title),
            justify="right" if kind == "right" else "left",
            overflow="ellipsis" if short else "fold",
            no_wrap=kind in ("short", "right"),
        )
    return made


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Prints one JSON document on stdout; without `indent` on one line, for streams."""
    # Straight to the stream: a console would fold long lines and colour them.
    sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=not _takes_unicode()) + "\n")
    sys.stdout.flush()


def _takes_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def as_json(message: Message) -> dict[str, Any]:
    """A message for programs: every field under its own name, enums as lower-case words, times in ISO 8601.

    Integers stay numbers, where protobuf's own JSON makes 64-bit ones text. An unset message is null.
    """
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> object:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(item, field) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: Any, field: Any) -> object:
    if isinstance(value, Timestamp):
        return iso(value)
    if isinstance(value, Message):
        return as_json(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_FLOAT:
        # A float32 has seven digits; the rest is noise of its way through a double.
        return float(f"{value:.7g}")
    return value


def enum_word(enum: Any, number: int) -> str:
    """The value's name without its enum's prefix, in lower case: DOCUMENT_STATE_INDEXED is indexed."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper() + "_"
    return str(value.name).removeprefix(prefix).lower()


def iso(time: Timestamp) -> str:
    """An instant for programs, in UTC."""
    return time.ToDatetime(UTC).isoformat().replace("+00:00", "Z")


def local_time(time: Timestamp) -> str:
    """An instant for people, to the minute, in their time zone."""
    return "" if time == Timestamp() else f"{_local(time):%Y-%m-%d %H:%M}"


def _local(time: Timestamp) -> datetime:
    return time.ToDatetime(UTC).astimezone()


def size(byte_count: int) -> str:
    """Bytes for people."""
    amount = float(byte_count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def usd(amount: str) -> str:
    """A decimal amount without an exponent and without idle zeros; no digit that counts is lost."""
    return plain_amount(Decimal(amount or 0))


def aligned(amounts: list[str]) -> list[str]:
    """Amounts padded with zeros to as many decimals as the finest of them, so that their points line up."""
    exact = [usd(amount) for amount in amounts]
    decimals = max((len(text.partition(".")[2]) for text in exact), default=0)
    return [f"{Decimal(text):,.{decimals}f}" for text in exact]


def place(page: int, headings: list[str], start_char: int, end_char: int) -> str:
    """Where in a document: the page if it has pages, the headings if it has any, and the characters."""
    parts = [f"page {page}"] if page else []
    if headings:
        parts.append(" > ".join(one_line(heading) for heading in headings))
    return " · ".join([*parts, f"chars {start_char}-{end_char}"])


STATE_STYLES: Mapping[str, str] = {
    "indexed": "green",
    "failed": "red",
    "accepted": "yellow",
    "deleting": "yellow",
    "deleted": "dim",
    "escalated": "yellow",
    "confident": "green",
    "best_effort": "yellow",
    "no_answer": "red",
}
"""Colours of states and decisions; their words stand next to them, so colour carries nothing alone."""


def state(word: str) -> Text:
    """A state or a decision in its colour."""
    return Text(word.replace("_", " "), style=STATE_STYLES.get(word, ""))
