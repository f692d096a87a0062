"""The bus, on a real nats-server: what is told is stored, what cannot be handled is kept with its reason."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import pytest
from nats.js.api import StorageType

from services.contracts.events import DocumentAccepted, derived_id
from services.contracts.failures import Busy, Conflict, Rejected, Taken
from services.contracts.streams import DEAD_LETTERS_STREAM, DOCUMENTS_BUCKET, DOCUMENTS_STREAM, RATES_STREAM, STREAMS
from services.contracts.tenants import TenantId
from services.runtime.bus import Bus, apply_streams, connected
from services.runtime.delivery import CONSUMER_HEADER, REASON_HEADER, Subscription
from services.runtime.nats_server import embedded_nats_server
from services.runtime.settings import BusSettings
from services.runtime.stopping import Stopping

DURABLE = "ingest-document_accepted"
Handler = Callable[[DocumentAccepted], Awaitable[None]]


def accepted(document_id: str, tenant: str = "acme") -> DocumentAccepted:
    """An event about `document_id`."""
    return DocumentAccepted(
        event_id=derived_id(tenant, document_id),
        event_time=datetime.now(UTC),
        tenant=TenantId(tenant),
        document_id=document_id,
        version="0" * 64,
    )


def subscription(**changes: object) -> Subscription[DocumentAccepted]:
    """Ingest's subscription, with `changes`."""
    fields = {
        "durable": DURABLE,
        "stream": DOCUMENTS_STREAM,
        "subject": DocumentAccepted.subject("ingest"),
        "event": DocumentAccepted,
        "workers": 2,
    } | changes
    return Subscription(**fields)  # type: ignore[arg-type]


async def ignore(event: DocumentAccepted, reason: str) -> None:
    """Gives up without a word."""


async def until(condition: Callable[[], bool | Awaitable[bool]], limit: float = 20) -> None:
    """Waits until `condition` holds."""
    async with asyncio.timeout(limit):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.02)


async def dead_reasons(bus: Bus, tenant: str = "*") -> list[str]:
    """Why messages were given up, newest first."""
    subject = f"dead_letters.v1.*.{tenant}"
    return [m.headers[REASON_HEADER] for m in await bus.browse(DEAD_LETTERS_STREAM, subject, before=None, limit=100)]


async def test_an_event_told_twice_is_heard_once(bus: Bus) -> None:
    """The event id is the message id."""
    heard: list[str] = []

    async def hear(event: DocumentAccepted) -> None:
        heard.append(event.document_id)

    async with bus.subscribed(subscription(), hear, ignore, drain_timeout=timedelta(seconds=5)):
        event = accepted("one")
        await bus.publish("ingest", event)
        await bus.publish("ingest", event)
        await bus.publish("ingest", accepted("two"))
        await until(lambda: "two" in heard)
    assert heard == ["one", "two"]


async def test_an_unhandled_message_comes_again_after_a_crash(bus: Bus) -> None:
    """A handler that never finished did not handle: the next worker gets the message."""
    heard: list[int] = []

    async def hang(event: DocumentAccepted) -> None:
        heard.append(1)
        await asyncio.sleep(60)

    async def hear(event: DocumentAccepted) -> None:
        heard.append(2)

    short = subscription(ack_wait=timedelta(seconds=1))
    async with bus.subscribed(short, hang, ignore, drain_timeout=timedelta(0)):
        await bus.publish("ingest", accepted("one"))
        await until(lambda: heard == [1])
    async with bus.subscribed(short, hear, ignore, drain_timeout=timedelta(seconds=5)):
        await until(lambda: heard == [1, 2])


async def test_a_slow_handler_is_not_interrupted_by_a_redelivery(bus: Bus) -> None:
    """The heartbeat keeps a message that takes longer than ack_wait with its worker."""
    starts: list[str] = []
    done = asyncio.Event()

    async def slow(event: DocumentAccepted) -> None:
        starts.append(event.document_id)
        await asyncio.sleep(3)
        done.set()

    short = subscription(ack_wait=timedelta(seconds=1))
    async with bus.subscribed(short, slow, ignore, drain_timeout=timedelta(seconds=5)):
        await bus.publish("ingest", accepted("one"))
        await asyncio.wait_for(done.wait(), 20)
    assert starts == ["one"]


async def test_what_cannot_be_handled_is_dead_lettered_with_its_reason(bus: Bus) -> None:
    """A rejected message goes at once and whoever waits for it is told first."""
    given_up: list[str] = []

    async def reject(event: DocumentAccepted) -> None:
        raise Rejected("NO_GOOD", "it will not do")

    async def give_up(event: DocumentAccepted, reason: str) -> None:
        given_up.append(reason)

    async with bus.subscribed(subscription(), reject, give_up, drain_timeout=timedelta(seconds=5)):
        await bus.publish("ingest", accepted("one"))
        await until(lambda: _equals(dead_reasons(bus, "acme"), ["NO_GOOD: it will not do"]))
    assert given_up == ["NO_GOOD: it will not do"]
    assert await dead_reasons(bus, "globex") == []


async def test_a_bug_is_tried_again_and_then_dead_lettered(bus: Bus) -> None:
    """The last delivery dead-letters: JetStream would only fall silent."""
    attempts: list[int] = []

    async def fail(event: DocumentAccepted) -> None:
        attempts.append(1)
        raise ValueError("the document says: secret")

    async with bus.subscribed(subscription(max_deliveries=2), fail, ignore, drain_timeout=timedelta(seconds=5)):
        await bus.publish("ingest", accepted("one"))
        await until(lambda: _has_any(dead_reasons(bus)))
    assert len(attempts) == 2
    (reason,) = await dead_reasons(bus)
    assert reason.startswith("INTERNAL: ValueError")
    assert "secret" not in reason


async def test_deliveries_that_ended_without_a_word_are_counted(bus: Bus) -> None:
    """A message that kills its process every time is given up before it is handled once more."""
    handled: list[int] = []

    async def hang(event: DocumentAccepted) -> None:
        handled.append(1)
        await asyncio.sleep(60)

    short = subscription(ack_wait=timedelta(seconds=1), max_deliveries=2)
    await bus.publish("ingest", accepted("one"))
    for expected in (1, 2):
        async with bus.subscribed(short, hang, ignore, drain_timeout=timedelta(0)):
            await until(lambda expected=expected: len(handled) == expected)  # type: ignore[misc]
    async with bus.subscribed(short, hang, ignore, drain_timeout=timedelta(0)):
        await until(lambda: _has_any(dead_reasons(bus)))
    assert len(handled) == 2


async def test_an_outage_costs_a_message_none_of_its_deliveries(bus: Bus) -> None:
    """While a dependency is away the message is held, not redelivered."""
    attempts: list[int] = []

    async def busy_once(event: DocumentAccepted) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise Busy("STORE_AWAY", "the store does not answer")

    async with bus.subscribed(subscription(max_deliveries=1), busy_once, ignore, drain_timeout=timedelta(seconds=5)):
        await bus.publish("ingest", accepted("one"))
        await until(lambda: len(attempts) == 2)
    assert await dead_reasons(bus) == []


async def test_waiting_for_somebody_else_keeps_no_worker(bus: Bus) -> None:
    """One worker handles what comes meanwhile, and the message that waits uses up none of its deliveries."""
    handled: list[str] = []

    async def handle(event: DocumentAccepted) -> None:
        if event.document_id == "one" and "two" not in handled:
            raise Taken("DOCUMENT_TAKEN", "another worker is at it")
        handled.append(event.document_id)

    await bus.publish("ingest", accepted("one"))
    await bus.publish("ingest", accepted("two"))
    single = subscription(max_deliveries=1, workers=1, ack_wait=timedelta(seconds=1))
    async with bus.subscribed(single, handle, ignore, drain_timeout=timedelta(seconds=5)):
        await until(lambda: len(handled) == 2)
    assert handled == ["two", "one"]
    assert await dead_reasons(bus) == []


async def test_no_more_are_handled_at_a_time_when_one_has_waited(bus: Bus) -> None:
    """A message that waited for somebody else waits for a worker as well."""
    at_work, most, handled = 0, 0, 0
    waited: set[str] = set()

    async def handle(event: DocumentAccepted) -> None:
        nonlocal at_work, most, handled
        if event.document_id not in waited:
            waited.add(event.document_id)
            raise Taken("DOCUMENT_TAKEN", "another worker is at it")
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.05)
        at_work -= 1
        handled += 1

    for number in range(5):
        await bus.publish("ingest", accepted(f"d{number}"))
    async with bus.subscribed(subscription(workers=1), handle, ignore, drain_timeout=timedelta(seconds=5)):
        await until(lambda: handled == 5)
    assert most == 1


async def test_what_waits_for_somebody_else_does_not_hold_up_the_end(bus: Bus) -> None:
    """It is left to whoever hears next."""
    tried = asyncio.Event()

    async def taken(event: DocumentAccepted) -> None:
        tried.set()
        raise Taken("DOCUMENT_TAKEN", "another worker is at it")

    await bus.publish("ingest", accepted("one"))
    async with asyncio.timeout(20):
        async with bus.subscribed(subscription(), taken, ignore, drain_timeout=timedelta(seconds=60)):
            await tried.wait()
    heard: list[str] = []

    async def hear(event: DocumentAccepted) -> None:
        heard.append(event.document_id)

    async with bus.subscribed(subscription(), hear, ignore, drain_timeout=timedelta(seconds=5)):
        await until(lambda: heard == ["one"])


async def test_workers_are_told_with_the_rest_of_the_process(bus: Bus) -> None:
    """They begin nothing once it stops, and what they have in hand gets the time that is left from then, no more."""
    stopping, begun = Stopping(), list[str]()
    never, in_hand = asyncio.Event(), asyncio.Event()

    async def hang(event: DocumentAccepted) -> None:
        begun.append(event.document_id)
        if event.document_id == "last":
            in_hand.set()
            await never.wait()

    both = subscription(workers=2)
    async with asyncio.timeout(30):
        async with bus.subscribed(both, hang, ignore, drain_timeout=timedelta(milliseconds=200), stopping=stopping):
            await bus.publish("ingest", accepted("last"))
            await in_hand.wait()
            stopping.set()
            await bus.publish("ingest", accepted("later"))
            # The rest of the process drains meanwhile.
            await asyncio.sleep(0.3)
            assert stopping.left_of(timedelta(milliseconds=200)) == timedelta()
    assert begun == ["last"]


@pytest.mark.parametrize(
    ("tenant", "payload", "expected"),
    [
        ("acme", b"", "Invalid JSON"),
        ("acme", b"\xff\xfe", "Invalid JSON"),
        ("acme", b'{"schema_version": 9}', "schema_version"),
        ("acme", accepted("one").model_copy(update={"document_id": "c>"}).model_dump_json().encode(), "document_id"),
        ("globex", accepted("one", "acme").model_dump_json().encode(), "not the one its subject names"),
    ],
)
async def test_malformed_messages_are_dead_lettered(
    bus: Bus, nats_url: str, tenant: str, payload: bytes, expected: str
) -> None:
    """What is no event never reaches a handler and never blocks the ones behind it."""
    heard: list[str] = []

    async def hear(event: DocumentAccepted) -> None:
        heard.append(event.document_id)

    stranger = await nats.connect(nats_url)
    await stranger.jetstream().publish(DocumentAccepted.subject("ingest", tenant), payload)
    await stranger.close()
    async with bus.subscribed(subscription(), hear, ignore, drain_timeout=timedelta(seconds=5)):
        await bus.publish("ingest", accepted("good"))
        await until(lambda: heard == ["good"])
        await until(lambda: _has_any(dead_reasons(bus)))
    (letter,) = await bus.browse(DEAD_LETTERS_STREAM, "dead_letters.v1.*.*", before=None, limit=10)
    assert expected in letter.headers[REASON_HEADER]
    assert letter.headers[CONSUMER_HEADER] == DURABLE
    assert letter.payload_bytes == len(payload)


async def test_streams_are_applied_twice_without_harm(bus: Bus) -> None:
    """Applying is idempotent and keeps what the streams hold."""
    await bus.publish("ingest", accepted("one"))
    await bus.apply_stream(DOCUMENTS_STREAM)
    assert len(await bus.browse(DOCUMENTS_STREAM, ">", before=None, limit=10)) == 1


async def test_every_stream_outlives_its_server(tmp_path: Path) -> None:
    """Nobody applies them again when a server has started anew."""
    folder = tmp_path / "bus"
    async with (
        embedded_nats_server(folder, BusSettings()) as url,
        connected(url, BusSettings(), "test") as bus,
    ):
        await apply_streams(bus, STREAMS, ())
        os.kill(int((folder / "nats.pid").read_text()), signal.SIGKILL)
        stranger = await nats.connect(url, allow_reconnect=True)
        names = {info.config.name for info in await stranger.jetstream().streams_info()}
        await stranger.close()
    assert names == {spec.name for spec in STREAMS}


async def test_a_stream_in_memory_is_made_one_on_disk(bus: Bus, nats_url: str) -> None:
    """An earlier release had one."""
    stranger = await nats.connect(nats_url)
    await stranger.jetstream().delete_stream(RATES_STREAM.name)
    await stranger.jetstream().add_stream(name=RATES_STREAM.name, subjects=["rates.v1.>"], storage="memory")
    await bus.apply_stream(RATES_STREAM)
    storage = (await stranger.jetstream().stream_info(RATES_STREAM.name)).config.storage
    await stranger.close()
    assert storage == StorageType.FILE


async def test_browsing_pages_backwards(bus: Bus) -> None:
    """The newest come first; `before` continues where the page ended."""
    for number in range(5):
        await bus.publish("ingest", accepted(str(number)))
    first = await bus.browse(DOCUMENTS_STREAM, ">", before=None, limit=2)
    second = await bus.browse(DOCUMENTS_STREAM, ">", before=first[-1].sequence, limit=2)
    assert [m.sequence for m in first + second] == [5, 4, 3, 2]


async def test_compare_and_set_refuses_the_second_writer(bus: Bus) -> None:
    """Of two who read the same revision one wins, the other learns of it."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    revision = await bucket.create("acme.one", b"1")
    await bucket.update("acme.one", b"2", revision)
    with pytest.raises(Conflict):
        await bucket.update("acme.one", b"3", revision)
    with pytest.raises(Conflict):
        await bucket.create("acme.one", b"4")
    with pytest.raises(Conflict):
        await bucket.delete("acme.one", revision)
    entry = await bucket.get("acme.one")
    assert entry is not None
    assert entry.value == b"2"


async def test_entries_of_one_prefix_are_not_anothers(bus: Bus) -> None:
    """A pattern never matches beyond its dot."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    for key in ("acme.one", "acme-2.one", "globex.one"):
        await bucket.put(key, b"x")
    assert [entry.key for entry in await bucket.entries("acme.>")] == ["acme.one"]


async def test_a_killed_server_is_started_again_and_has_everything(tmp_path: Path) -> None:
    """kill -9 of the embedded server loses no acknowledged message and the connection finds it again."""
    folder = tmp_path / "bus"
    async with (
        embedded_nats_server(folder, BusSettings()) as url,
        connected(url, BusSettings(publish_timeout=timedelta(seconds=1)), "test") as bus,
    ):
        await bus.apply_stream(DOCUMENTS_STREAM)
        await bus.publish("ingest", accepted("one"))
        os.kill(int((folder / "nats.pid").read_text()), signal.SIGKILL)

        async def heard() -> bool:
            try:
                return len(await bus.browse(DOCUMENTS_STREAM, ">", before=None, limit=10)) == 1
            except Busy:
                return False

        await until(heard)


async def test_an_absent_server_is_busy() -> None:
    """Nobody listens there: a clear failure, in time."""
    with pytest.raises(Busy, match="no NATS server answers"):
        async with connected("nats://127.0.0.1:1", BusSettings(connect_timeout=timedelta(seconds=1)), "test"):
            pass


async def test_a_payload_names_its_event_in_cloud_events_headers(bus: Bus, nats_url: str) -> None:
    """Strangers can read the envelope without our code."""
    event = accepted("one")
    await bus.publish("ingest", event)
    stranger = await nats.connect(nats_url)
    message = await stranger.jetstream().get_last_msg(DOCUMENTS_STREAM.name, event.subject("ingest", "acme"))
    await stranger.close()
    headers = message.headers or {}
    assert headers["ce-id"] == str(event.event_id)
    assert headers["ce-type"] == "headwater.ingest.v1.document_accepted"
    assert json.loads(message.data or b"")["document_id"] == "one"


async def _equals(found: Awaitable[list[str]], expected: list[str]) -> bool:
    return await found == expected


async def _has_any(found: Awaitable[list[str]]) -> bool:
    return bool(await found)
