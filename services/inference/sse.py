"""Server-sent events (WHATWG HTML, section 9.2), as far as completions use them: the data of each event."""

import codecs
import re
from collections.abc import AsyncGenerator, AsyncIterable

from services.contracts.failures import Busy

MAX_EVENT_CHARS = 1024 * 1024
_LINE_END = re.compile(r"\r\n|\n|\r(?!$)")


async def event_data(chunks: AsyncIterable[bytes]) -> AsyncGenerator[str, None]:
    """Yields the data of each event in `chunks`, wherever they are split. An event the stream ends in counts too.

    Raises:
        Busy: an event is larger than any that a model sends.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    buffer = ""
    data: list[str] = []
    async for chunk in chunks:
        buffer += decoder.decode(chunk)
        *lines, buffer = _LINE_END.split(buffer)
        for line in lines:
            if line:
                data += _data_of(line)
            elif data:
                yield "\n".join(data)
                data = []
        if len(buffer) + sum(map(len, data)) > MAX_EVENT_CHARS:
            raise Busy("PROVIDER_PROTOCOL", "the provider sent an event that is too large")
    data += _data_of(buffer.rstrip("\r"))
    if data:
        yield "\n".join(data)


def _data_of(line: str) -> list[str]:
    """The line's data, if it is a data field; comments and other fields have none."""
    name, _, value = line.partition(":")
    return [value.removeprefix(" ")] if name == "data" else []
