"""Starting, stopping, crashing: nothing accepted is lost, nothing is left running, two never share a folder."""

import asyncio
import re
import signal
import subprocess
from decimal import Decimal
from pathlib import Path
from time import sleep

import grpc
import psutil
import pytest
from headwater.ingest.v1 import ingest_pb2
from headwater.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from headwater.retrieval.v1 import retrieval_pb2
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

from tests.system.conftest import (
    COMMAND,
    Metadata,
    bearer,
    environment,
    events_told,
    put,
    put_and_wait,
    running_platform,
    settled,
    sql,
)

DOCUMENTS = 12
SUMS = "SELECT sum(calls), sum(cost_usd) FROM headwater.cost_hourly"


def text(number: int) -> bytes:
    """A document of a few chunks."""
    paragraphs = (f"Paragraph {p} of document {number} tells of pump {number}-{p}. " * 12 for p in range(6))
    return (f"# Document {number}\n\n" + "\n\n".join(paragraphs)).encode()


async def test_what_was_acknowledged_survives_a_kill_and_a_second_start_finds_it(tmp_path: Path) -> None:
    """kill -9 in the middle of indexing: every acknowledged document ends as indexed, no child is left, the same
    key works, what was spent is what was told, and Ctrl-C then ends everything cleanly.
    """
    data = tmp_path / "data"
    with running_platform(data) as first:
        key = first.tenant_key("acme")
        async with grpc.aio.insecure_channel(first.address) as channel:
            before = await put_and_wait(channel, bearer(key), "first.md", b"# First\n\nThe first code is 4711.\n")
            acknowledged = [
                (await put(channel, bearer(key), f"{number}.md", text(number))).document.document_id
                for number in range(DOCUMENTS)
            ]
        children = psutil.Process(first.process.pid).children(recursive=True)
        first.process.kill()
        first.process.wait(30)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive

    with running_platform(data) as second:
        async with grpc.aio.insecure_channel(second.address) as channel:
            for document_id in acknowledged:
                document = await settled(channel, bearer(key), document_id)
                assert document.state == ingest_pb2.DOCUMENT_STATE_INDEXED
            listed = await IngestServiceStub(channel).ListDocuments(
                ingest_pb2.ListDocumentsRequest(), metadata=bearer(key), timeout=30
            )
            assert {d.document_id for d in listed.documents} == {before.document_id, *acknowledged}
            found = await RetrievalServiceStub(channel).Search(
                retrieval_pb2.SearchRequest(query="What is the first code?", limit=1), metadata=bearer(key), timeout=30
            )
            assert "4711" in found.passages[0].text
            told = await events_told(data)
            ledger = (len(told), sum(cost for _, cost in told))
            # What the killed process had in hand is delivered again after the consumer's ack_wait.
            async with asyncio.timeout(90):
                while await _sums(channel, second.admin) != ledger:
                    await asyncio.sleep(0.2)
        children = psutil.Process(second.process.pid).children(recursive=True)
        assert any("nats-server" in child.name() for child in children)
        assert second.stop(signal.SIGINT) == 0
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive
        assert not (data / "run.json").exists()
    assert "Traceback" not in second.log.read_text()


async def _sums(channel: grpc.aio.Channel, admin: Metadata) -> tuple[int, Decimal]:
    ((calls, cost),) = await sql(channel, admin, SUMS)
    return int(calls), Decimal(cost)


async def test_a_second_instance_on_the_folder_is_told_so(tmp_path: Path) -> None:
    """One clear line, an exit code, and the first goes on."""
    data = tmp_path / "data"
    with running_platform(data) as first:
        second = await asyncio.to_thread(
            subprocess.run,
            (*COMMAND, "run", "all"),
            env=environment(data, {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 3
        assert f"in use by process {first.process.pid}" in second.stderr
        assert len(second.stderr.strip().splitlines()) == 1
        async with grpc.aio.insecure_channel(first.address) as channel:
            await IngestServiceStub(channel).ListDocuments(
                ingest_pb2.ListDocumentsRequest(), metadata=first.tenant("acme"), timeout=30
            )


async def test_logs_hold_no_secrets_and_no_text(tmp_path: Path) -> None:
    """Neither keys nor documents nor questions reach the log, at the chattiest level, whatever goes wrong."""
    data = tmp_path / "data"
    with running_platform(data, {"HEADWATER_PROCESS__LOG_LEVEL": "debug"}) as platform:
        key = platform.tenant_key("acme")
        async with grpc.aio.insecure_channel(platform.address) as channel:
            await put_and_wait(channel, bearer(key), "a.md", b"# Sesame\n\nThe magic word is abracadabra.\n")
            await put_and_wait(channel, bearer(key), "b.pdf", b"%PDF-1.7 abracadabra")
            await RetrievalServiceStub(channel).Search(
                retrieval_pb2.SearchRequest(query="What about hocuspocus?"), metadata=bearer(key), timeout=30
            )
        platform.stop()
        log = platform.log.read_text()
    assert "acme" in log
    assert not re.search(r"abracadabra|hocuspocus|hw_[A-Za-z0-9]{12}_", log)
    assert platform.admin_key not in log


@pytest.mark.parametrize("after_s", [3.0, 6.0])
def test_whoever_stops_it_while_it_starts_need_not_wait(tmp_path: Path, after_s: float) -> None:
    """The model that is still being loaded is abandoned; nothing is left running."""
    process = subprocess.Popen(
        (*COMMAND, "run", "all"), env=environment(tmp_path, {}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    sleep(after_s)
    process.terminate()
    assert process.wait(30) in {0, -signal.SIGTERM}
    commands = [" ".join(running.info["cmdline"] or ()) for running in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]
