"""Tool calls of chat completions, put together from what servers send of them. Pure."""

import msgspec

from services.inference.providers.chat import ToolCall


class FunctionPiece(msgspec.Struct, gc=False):
    """Of a call's function."""

    name: str | None = None
    arguments: str | None = None


class CallPiece(msgspec.Struct, gc=False):
    """A piece of a call, or a whole one."""

    index: int | None = None
    id: str | None = None
    function: FunctionPiece | None = None


class CallsSoFar:
    """The calls of an answer as it comes."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def take(self, piece: CallPiece, *, whole: bool) -> int:
        """Takes a piece, or a whole call; returns how many bytes the model wrote for it.

        A name that is told again is not written again.
        """
        function = piece.function or FunctionPiece()
        call = None if whole else self._continued(piece, function.name or "")
        if call is None:
            call = _Call(piece.index)
            self._calls.append(call)
        before, call.id, call.name = call.name, call.id or piece.id or "", call.name or function.name or ""
        call.arguments.append(function.arguments or "")
        return len(call.arguments[-1].encode()) + (0 if before else len(call.name.encode()))

    def made(self) -> tuple[ToolCall, ...]:
        """As they stand."""
        return tuple(ToolCall(call.id, call.name, "".join(call.arguments)) for call in self._calls)

    def _continued(self, piece: CallPiece, name: str) -> "_Call | None":
        """The call that a piece goes on with; None where it begins one.

        Some servers give every call the index 0 or none, some no ids, some a name with every piece and some an id of
        its own to every piece.
        """
        known = next((call for call in reversed(self._calls) if call.index == piece.index), None)
        if piece.index is None and not piece.id and self._calls:
            known = self._calls[-1]
        if known is None:
            return None
        told_apart = bool(piece.id and known.id)
        differs = told_apart and piece.id != known.id
        if not name:
            begins = differs and piece.index is None
        elif told_apart or not known.name:
            begins = differs
        else:
            begins = name != known.name or known.complete
        return None if begins else known


class _Call:
    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether its arguments are JSON already."""
        arguments = "".join(self.arguments)
        if not arguments.rstrip().endswith("}"):
            return False
        try:
            msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError):
            return False
        return True
