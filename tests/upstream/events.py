"""Server-sent events, before they are bytes. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream."""

    data: str
    name: str = ""
    """Empty where the protocol names no events."""
    written: int = 0
    """How many pieces of the answer are out once this event is; 0 leaves it as it was."""
    last: bool = False
    """It says that the stream is whole: OpenAI's [DONE], Anthropic's message_stop."""

    def encoded(self, crlf: bool = False) -> bytes:
        """On the wire; with `crlf` behind a comment and with the other line end that the standard allows."""
        lines = [f"event: {self.name}"] if self.name else []
        lines = [": keep-alive", *lines] if crlf else lines
        end = "\r\n" if crlf else "\n"
        return (end.join([*lines, f"data: {self.data}"]) + end * 2).encode()
