"""Server-sent events (WHATWG HTML, section 9.2), as far as models use them: the data of each event."""

from services.contracts.failures import Busy

MAX_EVENT_BYTES = 1024 * 1024


class EventReader:
    """Takes a stream apart, wherever it is split."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        """The parts of a line whose end has not come."""
        self._data: list[bytes] = []
        """The data lines of an event whose end has not come."""
        self._held_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that `chunk` ends.

        Raises:
            Busy: an event is larger than any that a model sends.
        """
        self._held_bytes += len(chunk)
        if self._held_bytes > MAX_EVENT_BYTES + len(chunk):
            raise Busy("PROVIDER_PROTOCOL", "the provider sent an event that is too large")
        if b"\n" not in chunk and b"\r" not in chunk and (not self._line or not self._line[-1].endswith(b"\r")):
            self._line.append(chunk)
            return []
        if self._line:
            chunk = b"".join((*self._line, chunk))
            self._line.clear()
        lines = chunk.splitlines(keepends=True)
        # A carriage return may be the first half of a line's end.
        if not lines[-1].endswith(b"\n"):
            self._line.append(lines.pop())
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(_value(line))
            elif self._data and line in _BLANK:
                events.append(self._event())
        self._held_bytes = sum(map(len, self._line)) + sum(map(len, self._data))
        return events

    def end(self) -> list[bytes]:
        """The event that the stream ended in, which counts too."""
        for line in b"".join(self._line).splitlines():
            if line.startswith(b"data:"):
                self._data.append(_value(line))
        self._line.clear()
        return [self._event()] if self._data else []

    def _event(self) -> bytes:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        return data


_BLANK = frozenset({b"\n", b"\r\n", b"\r"})


def _value(line: bytes) -> bytes:
    return line[6 if line.startswith(b"data: ") else 5 :].rstrip(b"\r\n")
