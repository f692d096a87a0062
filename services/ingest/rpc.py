"""Calls in: translates to and from protobuf; decides nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from headwater.ingest.v1 import ingest_pb2 as pb
from headwater.ingest.v1.ingest_pb2_grpc import IngestServiceServicer

from services.contracts.failures import Rejected
from services.ingest.accepting import Accepting
from services.ingest.documents import Document, Documents, State, document_id_of
from services.ingest.watching import dead_letters_of, watch
from services.runtime.bus import Bus
from services.runtime.delivery import (
    CONSUMER_HEADER,
    DELIVERIES_HEADER,
    REASON_HEADER,
    SEQUENCE_HEADER,
    SUBJECT_HEADER,
)
from services.runtime.identity import caller, caller_tenant
from services.runtime.reading import StoredMessage

_DEFAULT_PAGE = 100
_TO_PROTO = {
    State.ACCEPTED: pb.DOCUMENT_STATE_ACCEPTED,
    State.INDEXED: pb.DOCUMENT_STATE_INDEXED,
    State.FAILED: pb.DOCUMENT_STATE_FAILED,
    State.DELETING: pb.DOCUMENT_STATE_DELETING,
    State.DELETED: pb.DOCUMENT_STATE_DELETED,
}
_FROM_PROTO = {number: state for state, number in _TO_PROTO.items()}


class IngestRpc(IngestServiceServicer):
    """IngestService."""

    def __init__(self, accepting: Accepting, documents: Documents, bus: Bus, stopping: asyncio.Event) -> None:
        """`stopping` is set when the server stops."""
        self._accepting = accepting
        self._documents = documents
        self._bus = bus
        self._stopping = stopping

    async def PutDocument(self, requests: AsyncIterator[pb.PutDocumentRequest], _: Any) -> pb.PutDocumentResponse:
        tenant = caller_tenant()
        header = await _header(requests)
        document_id = header.document_id or document_id_of(tenant, header.name)
        document, unchanged = await self._accepting.put(
            tenant, document_id, header.name, _pieces(requests), key_id=caller().key_id
        )
        return pb.PutDocumentResponse(document=to_proto(document), unchanged=unchanged)

    async def GetDocument(self, request: pb.GetDocumentRequest, _: Any) -> pb.GetDocumentResponse:
        document, _revision = await self._documents.get(caller_tenant(), request.document_id)
        return pb.GetDocumentResponse(document=to_proto(document))

    async def ListDocuments(self, request: pb.ListDocumentsRequest, _: Any) -> pb.ListDocumentsResponse:
        documents, next_token = await self._documents.page(
            caller_tenant(),
            after=request.page_token,
            limit=request.page_size or _DEFAULT_PAGE,
            state=_FROM_PROTO.get(request.state),
        )
        return pb.ListDocumentsResponse(documents=map(to_proto, documents), next_page_token=next_token)

    async def WatchDocument(self, request: pb.WatchDocumentRequest, _: Any) -> AsyncIterator[pb.WatchDocumentResponse]:
        watched = watch(self._documents, caller_tenant(), request.document_id, self._stopping)
        async with aclosing(watched) as records:
            async for document in records:
                yield pb.WatchDocumentResponse(document=to_proto(document))

    async def DeleteDocument(self, request: pb.DeleteDocumentRequest, _: Any) -> pb.DeleteDocumentResponse:
        document = await self._accepting.delete(caller_tenant(), request.document_id)
        return pb.DeleteDocumentResponse(document=to_proto(document))

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, _: Any) -> pb.ListDeadLettersResponse:
        limit = request.page_size or _DEFAULT_PAGE
        before = int(request.page_token) if request.page_token else None
        found = await dead_letters_of(self._bus, caller().tenant, before=before, limit=limit + 1)
        page = found[:limit]
        return pb.ListDeadLettersResponse(
            dead_letters=map(_dead_letter, page),
            next_page_token=str(page[-1].sequence) if len(found) > limit else "",
        )


def to_proto(document: Document) -> pb.Document:
    """The record as clients see it."""
    return pb.Document(
        document_id=document.document_id,
        name=document.name,
        media_type=document.media_type,
        size_bytes=document.size_bytes,
        version=document.version,
        state=_TO_PROTO[document.state],
        failure_reason=document.failure_reason,
        failure_code=document.failure_code,
        chunk_count=document.chunk_count,
        indexed_version=document.indexed_version,
        accepted_at=_timestamp(document.accepted_at),
        updated_at=_timestamp(document.updated_at),
    )


async def _header(requests: AsyncIterator[pb.PutDocumentRequest]) -> pb.DocumentHeader:
    async for request in requests:
        if request.WhichOneof("part") == "header":
            return request.header
        break
    raise Rejected("HEADER_MISSING", "the first message of an upload must be its header")


async def _pieces(requests: AsyncIterator[pb.PutDocumentRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "data":
            raise Rejected("HEADER_REPEATED", "only the first message of an upload may be a header")
        yield request.data


def _dead_letter(message: StoredMessage) -> pb.DeadLetter:
    headers = message.headers
    return pb.DeadLetter(
        sequence=message.sequence,
        consumer=headers.get(CONSUMER_HEADER, ""),
        subject=headers.get(SUBJECT_HEADER, ""),
        stream_sequence=int(headers.get(SEQUENCE_HEADER, "0")),
        reason=headers.get(REASON_HEADER, ""),
        deliveries=int(headers.get(DELIVERIES_HEADER, "0")),
        died_at=_timestamp(message.stored_at),
        payload_bytes=message.payload_bytes,
    )


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
