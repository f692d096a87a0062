"""The upstream's own account of every call: what chaos tests compare Headwater's with."""

from dataclasses import dataclass, field
from typing import Any

from tests.upstream.answers import Tokens
from tests.upstream.misbehaviour import Conduct


@dataclass(slots=True)
class Call:
    """One call, as far as it has come."""

    id: str
    """Told in the answer and in its headers."""
    at: float
    """Seconds since 1970."""
    protocol: str
    model: str
    stream: bool
    conduct: Conduct
    """What it was to suffer."""
    body: Any = field(repr=False)
    credential: str = field(repr=False)
    """What the caller signed with: the header Authorization or x-api-key."""
    status: int | None = None
    """None until headers are out."""
    billed: Tokens = field(default_factory=Tokens)
    """Nothing where it was refused; the input from its start; the output as it was generated, a body's as a whole."""
    answered: bool = False
    """Everything of a usable answer was written. The client may still have gone without reading it."""
    hung_up: bool = False
    """The client left before the end."""
    ended: bool = False

    def told(self) -> dict[str, Any]:
        """Without what the caller sent: no prompt leaves the process."""
        return {
            "id": self.id,
            "at": self.at,
            "protocol": self.protocol,
            "model": self.model,
            "stream": self.stream,
            "conduct": self.conduct.model_dump(exclude_defaults=True),
            "status": self.status,
            "billed": self.billed.model_dump(),
            "answered": self.answered,
            "hung_up": self.hung_up,
            "ended": self.ended,
        }


class Ledger:
    """All calls since the start, or since it was cleared."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.in_progress = 0
        self.most_in_progress = 0
        self._taken = 0

    def next_id(self) -> str:
        """A name for the next call, never given twice."""
        self._taken += 1
        return f"call-{self._taken}"

    def begin(self, call: Call) -> None:
        """Enters a call."""
        self.calls.append(call)
        self.in_progress += 1
        self.most_in_progress = max(self.most_in_progress, self.in_progress)

    def end(self, call: Call) -> None:
        """Whatever became of it."""
        call.ended = True
        self.in_progress -= 1

    def clear(self) -> None:
        """Forgets all calls; those in progress are not entered again."""
        self.calls = []
        self.most_in_progress = self.in_progress

    def told(self, since: int = 0) -> dict[str, Any]:
        """The calls from number `since` on, and how many are under way."""
        return {"in_progress": self.in_progress, "calls": [call.told() for call in self.calls[since:]]}
