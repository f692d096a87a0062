"""A NATS client with a short way for messages that come by the thousand: acknowledgements, and batches of a stream.

nats-py parses a message's headers, puts it into its subscription's queue and wakes a task for it: together more than
most of our handlers do. What is subscribed to directly is handed on where it is read.
"""

from collections.abc import Callable, Mapping

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from services.runtime.telemetry import log

Take = Callable[[str, str, bytes, bytes], None]
"""Takes a message at once: subject, where to reply, payload, headers as they were sent (see `read_headers`).

It must neither wait nor raise.
"""

_VERSION = "NATS/1.0"


class DirectClient(Client):
    """nats-py's client, with `subscribe_directly`, and proof against subjects that are no text.

    JetStream takes any bytes for one. nats-py stops reading for good when it cannot decode them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._takers: dict[int, Take] = {}

    async def subscribe_directly(self, subject: str, take: Take) -> Subscription:
        """As `subscribe`, without a queue: `take` is called for every message, in their order."""
        subscription = await self.subscribe(subject, cb=_never)
        self._takers[subscription._id] = take
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Hands on no more of what is subscribed to directly."""
        self._takers.pop(subscription._id, None)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            if (take := self._takers.get(sid)) is None:
                await super()._process_msg(sid, _text(subject), _text(reply), data, headers)
            else:
                take(_text(subject).decode(), _text(reply).decode(), data, headers or b"")
        except Exception as error:  # noqa: BLE001 - raised here it would end all reading
            log.error("a message was dropped", subject=_text(subject).decode(), error=type(error).__name__)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # nats-py looks at every character of every name, which is most of what a message costs it.
        headers = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                headers[name] = value.strip()
        return headers


def read_headers(raw: bytes) -> Mapping[str, str]:
    """Headers as they were sent; a server's own message has `Status`, three digits, and maybe `Description`."""
    first, _, rest = raw.partition(b"\r\n")
    headers = DirectClient._parse_header_lines(rest)
    status, _, description = first.decode().removeprefix(_VERSION).strip().partition(" ")
    return {**headers, "Status": status, "Description": description} if status else headers


def _text(raw: bytes) -> bytes:
    return raw if raw.isascii() else raw.decode("utf-8", "replace").encode()


async def _never(message: Msg) -> None:
    raise RuntimeError("a message that is taken directly is queued nowhere")
