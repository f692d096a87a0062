"""A stream by its sequences, on a real nats-server."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import nats
import pytest
from nats.js import JetStreamContext

from services.contracts.streams import USAGE_STREAM
from services.runtime.acked import Outgoing
from services.runtime.bus import Bus
from services.runtime.by_sequence import Sequences

SUBJECT = "inference.v1.usage_settled.acme"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
async def js(nats_url: str) -> AsyncIterator[JetStreamContext]:
    """What an operator may do."""
    client = await nats.connect(nats_url)
    yield client.jetstream()
    await client.close()


@pytest.fixture
async def sequences(bus: Bus) -> Sequences:
    """A stream of twelve messages, numbered in their payload."""
    await bus.publisher.publish([Outgoing(SUBJECT, str(n).encode()) for n in range(1, 13)])
    return bus.sequences(USAGE_STREAM, "taker")


async def numbers(sequences: Sequences, first: int, last: int, most: int = 100) -> tuple[list[int], int]:
    """The numbers read, and through which sequence."""
    messages, through = await sequences.read(first, last, most)
    assert [int(message.payload) for message in messages] == [message.stream_sequence for message in messages]
    return [message.stream_sequence for message in messages], through


async def test_a_range_is_read_as_far_as_asked(sequences: Sequences) -> None:
    """All of it, the first of it, past the stream's end, or a single one."""
    assert await numbers(sequences, 3, 5) == ([3, 4, 5], 5)
    assert await numbers(sequences, 3, 12, most=2) == ([3, 4], 4)
    assert await numbers(sequences, 11, 40) == ([11, 12], 40)
    assert await numbers(sequences, 30, 40) == ([], 40)
    assert await numbers(sequences, 7, 7) == ([7], 7)


async def test_what_was_deleted_is_left_out(sequences: Sequences, js: JetStreamContext) -> None:
    """A single one, one in the middle, one at the edge, and what was purged."""
    for sequence in (4, 6):
        await js.delete_msg(USAGE_STREAM.name, sequence)
    assert await numbers(sequences, 4, 4) == ([], 4)
    assert await numbers(sequences, 3, 6) == ([3, 5], 6)
    assert await numbers(sequences, 3, 9, most=2) == ([3, 5], 5)
    await js.purge_stream(USAGE_STREAM.name, keep=2)
    assert await numbers(sequences, 1, 11) == ([11], 11)


async def test_standing_says_how_far_a_consumer_is(bus: Bus, sequences: Sequences, js: JetStreamContext) -> None:
    """None while there is no consumer; then up to what it acknowledged without a break."""
    standing = await sequences.standing()
    assert (standing.first, standing.last, standing.handled_through) == (1, 12, None)
    pulled = await js.pull_subscribe("*.v1.usage_settled.*", "taker", stream=USAGE_STREAM.name)
    messages = await pulled.fetch(5)
    for message in (*messages[:3], messages[4]):
        await message.ack_sync()
    assert (await sequences.standing()).handled_through == 3
    await js.purge_stream(USAGE_STREAM.name)
    standing = await sequences.standing()
    assert (standing.first, standing.last) == (13, 12)


async def test_the_next_message_tells_when_it_was_stored(sequences: Sequences, js: JetStreamContext) -> None:
    """Past the last there is none."""
    await js.delete_msg(USAGE_STREAM.name, 4)
    told_at = await sequences.told_at(4)
    assert told_at is not None
    assert abs(datetime.now(UTC) - told_at) < timedelta(minutes=1)
    assert await sequences.told_at(13) is None


async def test_what_was_given_up_is_known_by_its_sequence(bus: Bus, sequences: Sequences) -> None:
    """This consumer's, and since then, with the reason."""
    (message,), _ = await sequences.read(5, 5, 1)
    await sequences.give_up(message, "MALFORMED: it is only a number")
    assert await sequences.given_up(EPOCH) == {5: "MALFORMED"}
    assert await sequences.given_up(datetime.now(UTC) + timedelta(minutes=1)) == {}
    assert await bus.sequences(USAGE_STREAM, "another").given_up(EPOCH) == {}


async def test_a_stream_that_nothing_was_told_to_can_be_asked(bus: Bus) -> None:
    """The server says that its first sequence is 0, and takes that for no request."""
    empty = bus.sequences(USAGE_STREAM, "taker")
    standing = await empty.standing()
    assert (standing.first, standing.last) == (1, 0)
    assert await empty.told_at(standing.first) is None
