"""The wiring of ingest; read this first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import IO

from headwater.ingest.v1.ingest_pb2_grpc import add_IngestServiceServicer_to_server

from services.contracts.events import DocumentAccepted, DocumentDeleted, DocumentFailed, DocumentIndexed
from services.contracts.prices import PriceBook
from services.contracts.streams import DOCUMENTS_BUCKET, DOCUMENTS_STREAM, TURNS_BUCKET
from services.ingest.accepting import Accepting, keep_announcing
from services.ingest.blobs import Blobs, keep_removing_unfinished
from services.ingest.chunking import ChunkLimits, chunks_of
from services.ingest.documents import Documents
from services.ingest.handlers import IngestHandlers
from services.ingest.indexing import Indexing
from services.ingest.parsing import ParseLimits, Parser
from services.ingest.rpc import IngestRpc
from services.ingest.settings import IngestSettings
from services.ingest.turns import Turns
from services.knowledge.embedder import Embedder
from services.knowledge.passages import Chunk
from services.knowledge.store import VectorStore
from services.runtime.background import background
from services.runtime.bus import Bus
from services.runtime.delivery import Subscription
from services.runtime.inspecting import inspecting
from services.runtime.outbox import Outbox
from services.runtime.rpc import RpcServer
from services.runtime.stopping import Stopping

NAME = "ingest"


@asynccontextmanager
async def serving(settings: IngestSettings, *, bus: Bus, blobs: Blobs, server: RpcServer) -> AsyncIterator[None]:
    """The API: takes documents in and tells how they fare."""
    documents = Documents(await bus.bucket(DOCUMENTS_BUCKET))
    accepting = Accepting(
        documents,
        Turns(await bus.bucket(TURNS_BUCKET), TURNS_BUCKET.ttl),
        blobs,
        partial(bus.publish, NAME),
        max_document_bytes=settings.max_document_bytes,
        max_uploads=settings.max_uploads,
        max_uploads_per_tenant=settings.max_uploads_per_tenant,
        idle_timeout=settings.upload_idle_timeout,
    )
    server.add(add_IngestServiceServicer_to_server, IngestRpc(accepting, documents, bus, server.stopping))
    async with background(
        keep_announcing(accepting, settings.straggler_age / 2, older_than=settings.straggler_age),
        keep_removing_unfinished(blobs),
    ):
        yield


@asynccontextmanager
async def working(
    settings: IngestSettings,
    drain_timeout: timedelta,
    *,
    stopping: Stopping,
    bus: Bus,
    usage: Outbox,
    blobs: Blobs,
    store: VectorStore,
    embedder: Embedder,
    prices: PriceBook,
) -> AsyncIterator[None]:
    """The worker: indexes what was accepted. It is told by `stopping` when the process stops."""
    parse_limits = ParseLimits(
        timeout=settings.parse_timeout,
        memory_bytes=settings.parser_memory_bytes,
        max_text_chars=settings.max_text_chars,
    )
    chunk_limits = ChunkLimits(window_tokens=embedder.window_tokens, max_chunks=settings.max_chunks)

    async def cut(file: IO[bytes], name: str) -> tuple[str, list[Chunk]]:
        document = await parser.parse(file, name)
        return document.media_type, await asyncio.to_thread(chunks_of, document, embedder.token_spans, chunk_limits)

    async with AsyncExitStack() as stack:
        parser = await stack.enter_async_context(Parser(parse_limits, settings.parsers))
        indexing = Indexing(
            Documents(await bus.bucket(DOCUMENTS_BUCKET)),
            Turns(await bus.bucket(TURNS_BUCKET), TURNS_BUCKET.ttl),
            blobs,
            store,
            embedder,
            prices,
            partial(bus.publish, NAME),
            partial(usage.tell, NAME),
            cut,
            check_room=usage.check_room,
            slice_chunks=settings.slice_chunks,
        )
        handlers = IngestHandlers(indexing)
        await stack.enter_async_context(
            bus.subscribed(
                Subscription(
                    durable="ingest-document_accepted",
                    stream=DOCUMENTS_STREAM,
                    subject=DocumentAccepted.subject(NAME),
                    event=DocumentAccepted,
                    workers=settings.workers,
                ),
                handlers.on_document_accepted,
                handlers.on_document_given_up,
                drain_timeout=drain_timeout,
                stopping=stopping,
            )
        )
        await stack.enter_async_context(
            inspecting(bus, NAME, DOCUMENTS_STREAM, DocumentIndexed, DocumentFailed, DocumentDeleted)
        )
        yield
