"""The client of NATS: nothing that anybody can store in a stream ends its reading."""

import asyncio
from contextlib import aclosing

import nats

from services.contracts.streams import KEYS_BUCKET
from services.runtime.bus import Bus


async def _publish(url: str, subject: bytes, data: bytes) -> None:
    """As a client may that checks nothing: as it goes over the wire."""
    client = await nats.connect(url)
    client._transport.write(b"PUB %b %d\r\n%b\r\n" % (subject, len(data), data))  # type: ignore[union-attr]
    await client.flush()
    await client.close()


async def test_a_subject_that_is_no_text_stops_nobody(bus: Bus, nats_url: str) -> None:
    """Its message is told to who listens and listed with the others; so is what comes after it."""
    bucket = await bus.bucket(KEYS_BUCKET)
    await bucket.put("before", b"1")
    async with asyncio.timeout(20), aclosing(bucket.followed()) as followed:
        assert (await anext(followed)).value == b"1"
        await _publish(nats_url, b"$KV.keys.\xff\xfe", b"junk")
        while (await anext(followed)).value != b"junk":
            pass
        assert {entry.value for entry in await bucket.entries()} == {b"1", b"junk"}
        await bucket.put("after", b"2")
        while (await anext(followed)).value != b"2":
            pass
