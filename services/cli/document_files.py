"""Documents that a command is given, and what is wrong with them, told as a compiler does."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import one_line, stderr

if TYPE_CHECKING:
    from services.contracts.documents import Problem

_MOST_BYTES = 1024 * 1024
"""More than any document may have; it only bounds what is read of a wrong file."""


def read_document(file: str) -> str:
    """The text of `file`; of standard input when it is "-".

    Raises:
        CommandFailed: it is no text.
        OSError: it cannot be read.
    """
    data = sys.stdin.buffer.read(_MOST_BYTES) if file == "-" else _first_bytes(Path(file))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CommandFailed(Exit.REJECTED, f"{file}:{line}: this is no UTF-8 text") from None


def tell_problems(file: str, problems: "Sequence[Problem]") -> None:
    """Prints FILE:LINE: REASON for each, on stderr."""
    err = stderr()
    for problem in problems:
        err.print(one_line(f"{file}:{problem.line}: {problem.reason}"), soft_wrap=True)


def _first_bytes(path: Path) -> bytes:
    """No more than tells that it is too large."""
    with path.open("rb") as opened:
        return opened.read(_MOST_BYTES)
