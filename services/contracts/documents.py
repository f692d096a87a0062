"""YAML documents whose every value knows its line, read in bounded time and memory.

Of YAML only what JSON has, in either notation: mappings with text for keys, lists, text, numbers, true, false and null.
Anchors, aliases, tags and several documents in one are refused, so that nothing can multiply or be constructed. Plain
words mean what YAML 1.2's core schema says: `no` and `on` are text, `12:30` is no number.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal

import yaml

MOST_BYTES = 512 * 1024
MOST_DEPTH = 16
MOST_VALUES = 100_000

Scalar = str | int | float | Decimal | bool | None

_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]{1,400}|[0-9]{1,400}(?:\.[0-9]{0,400})?)(?:[eE][-+]?[0-9]{1,3})?")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NO_TEXT = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufeff\uff00-\ufffd\U00010000-\U0010ffff]")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml where PyYAML was built with it. Only its events are used: nothing is constructed."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong with a document, and where."""

    line: int
    """From 1."""
    reason: str
    """In words, for its author."""


@dataclass(slots=True)
class Node:
    """A value and the line it, or the key before it, stands on."""

    line: int
    value: "Scalar | dict[str, Node] | list[Node]"


class UnreadableError(Exception):
    """The document cannot be read any further."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.problem = Problem(line, reason)


def read(text: str, *, exact: bool = False) -> tuple[Node, list[Problem]]:
    """The document in `text`, and what is wrong with it although it can be read: keys that stand twice.

    Numbers with a point or an exponent are floats; where `exact`, Decimals of just the digits that are written.

    Raises:
        UnreadableError: it is too large, too deep, no YAML, or uses more of YAML than is taken.
    """
    if len(text) > MOST_BYTES or len(text.encode(errors="replace")) > MOST_BYTES:
        raise UnreadableError(1, f"the document is larger than {MOST_BYTES // 1024} KiB")
    if found := _NO_TEXT.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise UnreadableError(line, f"the character U+{ord(found[0]):04X} is not allowed")
    tree = _Tree(Decimal if exact else float)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            tree.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise UnreadableError(mark.line + 1 if mark else 1, f"this is no YAML: {problem}") from error
    if tree.root is None:
        raise UnreadableError(1, "the document is empty")
    return tree.root, tree.problems


def plain(node: Node) -> object:
    """The value of `node` as plain dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def walk(node: Node, path: "tuple[str | int, ...]") -> Iterator[tuple[str | int, Node]]:
    """The steps of `path` that lead somewhere from `node`, each with where it leads; others are passed over."""
    for step in path:
        child = _child(node, step)
        if child is not None:
            node = child
            yield step, node


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(step) if isinstance(step, str) else None
    if isinstance(node.value, list) and isinstance(step, int) and 0 <= step < len(node.value):
        return node.value[step]
    return None


@dataclass(slots=True)
class _Tree:
    """Grows with each event of the parser; never recurses, so that depth is ours to bound."""

    number: Callable[[str], float | Decimal]
    """Makes a number out of its digits."""
    root: Node | None = None
    problems: list[Problem] = field(default_factory=list)
    _open: list[Node] = field(default_factory=list)
    _keys: list[Node | None] = field(default_factory=list)
    """For each open node: the key that waits for its value."""
    _values: int = 0

    def take(self, event: yaml.Event) -> None:
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise UnreadableError(line, "anchors and aliases (&name, *name) are not allowed: write the value out")
        if getattr(event, "tag", None) is not None:
            raise UnreadableError(line, "tags (!name) are not allowed")
        if isinstance(event, yaml.ScalarEvent):
            plain_style = event.style in {None, ""}
            self._add(Node(line, _resolved(event.value, self.number) if plain_style else event.value), event.value)
        elif isinstance(event, yaml.MappingStartEvent):
            self._enter(Node(line, {}))
        elif isinstance(event, yaml.SequenceStartEvent):
            self._enter(Node(line, []))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._keys.pop()
        elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise UnreadableError(line, "a second document begins here: one file holds one")

    def _enter(self, node: Node) -> None:
        self._add(node, None)
        if len(self._open) == MOST_DEPTH:
            raise UnreadableError(node.line, f"values are nested more than {MOST_DEPTH} deep")
        self._open.append(node)
        self._keys.append(None)

    def _add(self, node: Node, text: str | None) -> None:
        """Puts `node` where it belongs; `text` is what a scalar reads when it is a key."""
        self._values += 1
        if self._values > MOST_VALUES:
            raise UnreadableError(node.line, f"the document has more than {MOST_VALUES} values")
        if not self._open:
            self.root = node
            return
        parent = self._open[-1].value
        if isinstance(parent, list):
            parent.append(node)
        elif isinstance(parent, dict):
            key = self._keys[-1]
            if key is None:
                if text is None:
                    raise UnreadableError(node.line, "a key must be a word, not a list or a mapping")
                self._keys[-1] = Node(node.line, text)
            else:
                self._keys[-1] = None
                self._set(parent, key, node)

    def _set(self, parent: dict[str, Node], key: Node, node: Node) -> None:
        name = str(key.value)
        if name in parent:
            reason = f"{shown(name)} stands here a second time; the first is on line {parent[name].line}"
            self.problems.append(Problem(key.line, reason))
        else:
            node.line = key.line
            parent[name] = node


def shown(name: str) -> str:
    """A name out of a document as it may stand in a sentence: short, on one line, nothing that steers a terminal."""
    safe = "".join(char if char.isprintable() else "?" for char in name[:60])
    return f"'{safe}…'" if len(name) > 60 else f"'{safe}'"


def _resolved(word: str, number: Callable[[str], float | Decimal]) -> Scalar:
    if word in _WORDS:
        return _WORDS[word]
    if _INTEGER.fullmatch(word):
        return int(word)
    if _NUMBER.fullmatch(word):
        value = number(word)
        # What overflows stays text, which is then told to be no number.
        return value if abs(value) != float("inf") else word
    return word
