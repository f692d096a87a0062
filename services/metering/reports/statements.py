"""Which of an analyst's statements may run. Pure.

The engine's read-only mode is the wall: it refuses writes, changes of settings and table functions that reach outside.
On chDB it has gaps, found by trying: ``SELECT … INTO OUTFILE`` writes a file, the function ``file()`` reads one,
``DESCRIBE url(…)`` opens what it describes, ``KILL QUERY`` and ``USE`` are let through. They are closed here, on the
statement as the engine's own parser spells it out (formatQuery): no comments, one quoting, one statement.
"""

import re
from itertools import pairwise
from typing import Final

from services.contracts.failures import Rejected

_FIRST_WORDS: Final = frozenset({"select", "with", "show", "describe", "explain", "exists"})
_REFUSED_NAMES: Final = frozenset({"file", "eval"})
_REFUSED_PREFIXES: Final = ("aiclassify", "aiembed", "aiextract", "aifilter", "aigenerate", "airedact", "aisim", "aitr")
_TOKEN: Final = re.compile(
    r"""(?P<text>'(?:[^'\\]|\\.|'')*')
      | `(?P<quoted>(?:[^`\\]|\\.|``)*)` | "(?P<double>(?:[^"\\]|\\.|"")*)"
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<sign>[^\s])""",
    re.VERBOSE | re.DOTALL,
)


def check_statement(canonical: str) -> None:
    """Checks a statement in the form that the engine's formatQuery gives it.

    Raises:
        Rejected: it does more than read the database.
    """
    tokens = [(m.lastgroup or "", m[m.lastgroup or 0].lower()) for m in _TOKEN.finditer(canonical)]
    values = [value for kind, value in tokens if kind != "text"]
    words = [value for kind, value in tokens if kind == "word"]
    if not words or words[0] not in _FIRST_WORDS:
        raise _refused("send one SELECT, SHOW, DESCRIBE, EXPLAIN or EXISTS statement")
    if ("into", "outfile") in pairwise(words):
        raise _refused("results cannot be written to files: drop INTO OUTFILE")
    for kind, value in tokens:
        if kind in {"word", "quoted", "double"} and (value in _REFUSED_NAMES or value.startswith(_REFUSED_PREFIXES)):
            raise _refused(f"{value} cannot be used here: it reaches outside the database")
    if words[:2] == ["explain", "table"]:
        raise _refused("EXPLAIN TABLE OVERRIDE cannot be used here")
    # DESCRIBE TABLE name( opens what it describes; DESCRIBE TABLE (SELECT …) does not.
    if words[0] == "describe" and values[3:4] == ["("]:
        raise _refused("DESCRIBE takes a table or a query in parentheses, not a table function")


def _refused(message: str) -> Rejected:
    return Rejected("SQL_REFUSED", message)
