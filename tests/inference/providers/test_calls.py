"""Tool calls out of what servers send of them."""

import pytest

from services.inference.providers.calls import CallPiece, CallsSoFar, FunctionPiece
from services.inference.providers.chat import ToolCall


def _piece(arguments: str, name: str | None = None, identity: str | None = None, index: int | None = 0) -> CallPiece:
    return CallPiece(index, identity, FunctionPiece(name, arguments))


def _made(*pieces: CallPiece, whole: bool = False) -> tuple[ToolCall, ...]:
    calls = CallsSoFar()
    for piece in pieces:
        calls.take(piece, whole=whole)
    return calls.made()


@pytest.mark.parametrize(
    "pieces",
    [
        [_piece("{}", "f", "a"), _piece('{"x"', "g", "b", 1), _piece(":1}", index=1)],
        [_piece('{"x"', "g", "b", 1), _piece("{}", "f", "a"), _piece(":1}", index=1)],
        [_piece("{}", "f", "a"), _piece('{"x":1}', "g", "b")],
        [_piece("{}", "f", "a"), _piece('{"x"', "g", "b"), _piece(":1}")],
        [_piece("{}", "f", "a", None), _piece('{"x"', "g", "b", None), _piece(":1}", index=None)],
        [_piece("", identity="a"), _piece("{}", "f"), _piece("", "g", "b", 1), _piece('{"x":1}', index=1)],
    ],
    ids=["OpenAI", "in turns", "one index", "one index, in pieces", "no index", "names come later"],
)
def test_calls_with_identities_are_told_apart(pieces: list[CallPiece]) -> None:
    """However a server numbers them."""
    assert set(_made(*pieces)) == {ToolCall("a", "f", "{}"), ToolCall("b", "g", '{"x":1}')}


@pytest.mark.parametrize("identity", ["", None])
@pytest.mark.parametrize("index", [0, None])
@pytest.mark.parametrize("second", ["f", "g"])
def test_a_name_begins_a_call_where_there_are_no_identities(
    identity: str | None, index: int | None, second: str
) -> None:
    """Also that of the same function, once the arguments before it are complete."""
    pieces = [
        _piece('{"a":{}', "f", identity, index),
        _piece(',"s":"}"}', "", identity, index),
        _piece("", second, identity, index),
        _piece('{"b":2}', None, identity, index),
    ]
    assert _made(*pieces) == (ToolCall("", "f", '{"a":{},"s":"}"}'), ToolCall("", second, '{"b":2}'))


@pytest.mark.parametrize("identity", ["a", "", None])
@pytest.mark.parametrize("index", [0, None])
def test_a_name_that_is_repeated_with_every_piece_is_one_call(identity: str | None, index: int | None) -> None:
    """As some servers do, whether or not they repeat the identity."""
    pieces = [
        _piece("", "f", "a", index),
        _piece('{"a":', "f", identity, index),
        _piece('{"b":1}', "f", identity, index),
        _piece("}", "f", identity, index),
    ]
    assert _made(*pieces) == (ToolCall("a", "f", '{"a":{"b":1}}'),)


def test_an_identity_of_its_own_for_every_piece_is_one_call() -> None:
    """As some servers make them up; only the piece with the name begins a call."""
    pieces = [_piece('{"a"', "f", "1"), _piece(":1}", None, "2"), _piece("{}", "g", "3"), _piece("", "", "4")]
    assert _made(*pieces) == (ToolCall("1", "f", '{"a":1}'), ToolCall("3", "g", "{}"))


@pytest.mark.parametrize("identity", ["", None, "same"])
@pytest.mark.parametrize("second", ["f", "g"])
def test_whole_calls_are_calls_of_their_own(identity: str | None, second: str) -> None:
    """Whatever their identities."""
    made = _made(_piece('{"a":1}', "f", identity), _piece('{"b":2}', second, identity), whole=True)
    assert made == (ToolCall(identity or "", "f", '{"a":1}'), ToolCall(identity or "", second, '{"b":2}'))


def test_what_was_written_is_counted_once() -> None:
    """In bytes of UTF-8; a name that is repeated was written once."""
    calls = CallsSoFar()
    pieces = (_piece('"', "zwölf", "a"), _piece("ä", "zwölf", "a"), CallPiece(0, "a"))
    assert [calls.take(piece, whole=False) for piece in pieces] == [7, 2, 0]
