"""Reading what a stream holds, against a real nats-server."""

from collections.abc import AsyncIterator

import nats
import pytest
from nats.js import JetStreamContext

from services.runtime.reading import stored

LONGER_THAN_A_BATCH = 501


@pytest.fixture
async def js(nats_url: str) -> AsyncIterator[JetStreamContext]:
    """A server with a stream of more messages than are fetched at a time."""
    client = await nats.connect(nats_url)
    js = client.jetstream()
    await js.add_stream(name="NUMBERS", subjects=["numbers"])
    for number in range(LONGER_THAN_A_BATCH):
        await js.publish("numbers", str(number).encode())
    yield js
    await client.close()


async def _read(js: JetStreamContext, *, purge_after: int | None = None) -> list[int]:
    numbers = []
    async for message in stored(js, "NUMBERS", ">", last_per_subject=False, headers_only=False, timeout_s=0.5):
        numbers.append(int(message.data))
        if len(numbers) == purge_after:
            await js.purge_stream("NUMBERS")
    return numbers


async def test_all_messages_come_in_order(js: JetStreamContext) -> None:
    """Over as many fetches as it takes."""
    assert await _read(js) == list(range(LONGER_THAN_A_BATCH))


async def test_what_is_purged_meanwhile_is_not_waited_for(js: JetStreamContext) -> None:
    """A stream that is trimmed while it is read ends where it ends; that is no failure of the bus."""
    numbers = await _read(js, purge_after=1)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) < LONGER_THAN_A_BATCH
