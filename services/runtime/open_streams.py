"""Streams of health and reflection, which probes and tools keep open for ever: they must not hold up a stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from grpc_status import rpc_status

from services.runtime import status
from services.runtime.stopping import server_stops, unless_set, until_set


def ending(handler: Any, stopping: asyncio.Event) -> Any:
    """`handler` as it is, but a stream of it ends when `stopping` is set."""
    if not handler.response_streaming:
        return handler

    async def answer_one(request: Any, context: Any) -> None:
        await unless_set(stopping, handler.unary_stream(request, context), None)
        await _abort(context)

    async def answer_each(requests: Any, context: Any) -> AsyncIterator[Any]:
        async with aclosing(until_set(stopping, handler.stream_stream(requests, context))) as responses:
            async for response in responses:
                yield response
        if stopping.is_set():
            await _abort(context)

    coders = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(answer_each, **coders)
    return grpc.unary_stream_rpc_method_handler(answer_one, **coders)


async def _abort(context: Any) -> None:
    await context.abort_with_status(rpc_status.to_status(status.of_failure(server_stops())))
