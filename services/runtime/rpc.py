"""The gRPC server: who may call, valid requests only, a deadline on every call, one translation of failures."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar
from uuid import uuid4

import grpc
import protovalidate
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from headwater.auth.v1 import auth_pb2

from services.contracts.failures import Busy, Denied, Failure, Rejected, Unauthenticated
from services.runtime import status
from services.runtime.calls import AUTHORIZATION, REQUEST_ID, begin_call, is_part_of_another
from services.runtime.identity import Caller, KeyStore, set_caller
from services.runtime.open_streams import ending
from services.runtime.places import Places
from services.runtime.settings import RpcSettings
from services.runtime.stopping import Stopping, server_stops
from services.runtime.telemetry import log

Servicer = TypeVar("Servicer")

_HANDLERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
_OPEN_SERVICES: Final = ("/grpc.health.v1.", "/grpc.reflection.")
"""Served to anyone: they tell what is served and whether it is up, nothing of anyone's data."""
_ROOM_FOR_OPEN_CALLS: Final = 100
_LARGEST_READ: Final = 4
"""Times the largest message taken: gRPC itself refuses what is larger still, without a reason."""
_LAST_WORD: Final = timedelta(seconds=0.5)
"""For calls that the end of the drain cuts short to be told so, before gRPC ends them without a reason."""


class RpcServer:
    """One port for all services of a process. Add servicers, then enter `serving`."""

    def __init__(self, settings: RpcSettings, keys: KeyStore) -> None:
        self._settings = settings
        self._access: dict[str, _Access] = {}
        self._services: list[str] = []
        self._health = health.aio.HealthServicer()
        self.stopping = Stopping()
        """Set when calls are to end: one that would go on for as long as its caller likes would hold up the rest."""
        self._guard = _Guard(keys, self._access, settings, self.stopping)
        self._server = grpc.aio.server(
            interceptors=[self._guard],
            # The last resort, without a reason: each of our calls may make another here, and probes always get in.
            maximum_concurrent_rpcs=2 * settings.max_concurrent_calls + _ROOM_FOR_OPEN_CALLS,
            options=(
                ("grpc.max_receive_message_length", _LARGEST_READ * settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.so_reuseport", 0),
            ),
        )

    def add(self, add_to_server: Callable[[Servicer, Any], None], servicer: Servicer) -> None:
        """Serves `servicer`; `add_to_server` is the generated function of its service.

        Raises:
            ValueError: a method does not say who may call it.
        """
        add_to_server(servicer, self)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Called by the generated function."""
        for handler in handlers:
            self._learn(handler.service_name())
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Called by the generated function."""
        self._server.add_registered_method_handlers(service, handlers)

    def _learn(self, service: str) -> None:
        descriptor = descriptor_pool.Default().FindServiceByName(service)
        for method in descriptor.methods:
            options = method.GetOptions()
            if not options.HasExtension(auth_pb2.access):
                raise ValueError(f"{service}/{method.name} does not say who may call it (headwater.auth.v1.access)")
            access = options.Extensions[auth_pb2.access]
            scopes = frozenset(map(auth_pb2.Scope.Name, access.any_scope))
            self._access[f"/{service}/{method.name}"] = _Access(scopes, access.tenant_required)
        self._services.append(service)

    def listen(self) -> str:
        """Takes the port and returns the address; calls wait there until `serving` is entered.

        Raises:
            Busy: the address is taken.
        """
        settings = self._settings
        try:
            if settings.tls_certificate and settings.tls_key:
                pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
                port = self._server.add_secure_port(settings.address, grpc.ssl_server_credentials([pair]))
            else:
                port = self._server.add_insecure_port(settings.address)
        except RuntimeError as error:
            raise Busy(
                "ADDRESS_TAKEN",
                f"cannot listen on {settings.address}: another program does; set HEADWATER_RPC__ADDRESS",
            ) from error
        return f"{settings.address.rpartition(':')[0]}:{port}"

    def listen_locally(self) -> str:
        """Takes a loopback port for the process's calls to itself, which need no TLS, and returns its address."""
        return f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    @asynccontextmanager
    async def serving(self, drain_timeout: timedelta) -> AsyncIterator[None]:
        """Answers calls. On leaving sets `stopping`, accepts no more and lets calls in progress finish."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._settings.reflection:
            names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        await self._server.start()
        for service in (health.OVERALL_HEALTH, *self._services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        try:
            yield
        finally:
            self.stopping.set()
            left = self.stopping.left_of(drain_timeout)
            self._guard.end_within(left)
            await self._health.enter_graceful_shutdown()
            await self._server.stop((left + _LAST_WORD).total_seconds())


@dataclass(frozen=True, slots=True)
class _Access:
    """Who may call a method."""

    any_scope: frozenset[str]
    tenant_required: bool


class _Guard(grpc.aio.ServerInterceptor):
    """Stands before every method."""

    def __init__(
        self, keys: KeyStore, access: dict[str, _Access], settings: RpcSettings, stopping: asyncio.Event
    ) -> None:
        self._keys = keys
        self._access = access
        self._settings = settings
        self._places = Places(settings.max_concurrent_calls, settings.calls_per_tenant, "calls")
        self._guarded_handlers: dict[str, Any] = {}
        self._stopping = stopping
        self._deadlines: set[asyncio.Timeout] = set()
        """Of the calls in progress."""
        self._last_moment: float | None = None
        """When the server ends all calls, on the loop's clock."""

    def end_within(self, left: timedelta) -> None:
        """Ends the calls that are still in progress when `left` has passed, with a reason."""
        self._last_moment = asyncio.get_running_loop().time() + left.total_seconds()
        for deadline in self._deadlines:
            self._bring_forward(deadline)

    def _bring_forward(self, deadline: asyncio.Timeout) -> None:
        last = self._last_moment
        if last is not None and not deadline.expired() and (deadline.when() or 0.0) > last:
            deadline.reschedule(last)

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        guarded = self._guarded_handlers.get(details.method)
        if guarded is None:
            handler = await continuation(details)
            if handler is None:
                return None
            is_open = details.method.startswith(_OPEN_SERVICES)
            guarded = ending(handler, self._stopping) if is_open else self._wrapped(handler, details.method)
            self._guarded_handlers[details.method] = guarded
        return guarded

    def _wrapped(self, handler: Any, method: str) -> Any:
        def guarded(context: Any) -> AbstractAsyncContextManager[None]:
            return self._guarded(method, context)

        async def unary(request: Any, context: Any) -> Any:
            async with guarded(context):
                if handler.request_streaming:
                    return await handler.stream_unary(_valid_each(request), context)
                return await handler.unary_unary(_valid(request), context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with guarded(context):
                if handler.request_streaming:
                    responses = handler.stream_stream(_valid_each(request), context)
                else:
                    responses = handler.unary_stream(_valid(request), context)
                async with aclosing(responses):
                    async for response in responses:
                        yield response

        make = _HANDLERS[handler.request_streaming, handler.response_streaming]
        return make(
            stream if handler.response_streaming else unary,
            request_deserializer=_forgiving(handler.request_deserializer, self._settings.max_message_bytes),
            response_serializer=handler.response_serializer,
        )

    @asynccontextmanager
    async def _guarded(self, method: str, context: Any) -> AsyncIterator[None]:
        """Lets the call in as its caller, within its deadline, and gives whatever it raises a status."""
        started = time.monotonic()
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        time_left = self._time_left(context)
        call = begin_call(metadata.get(REQUEST_ID), metadata.get(AUTHORIZATION, ""), time_left)
        outcome = "OK"
        deadline = asyncio.timeout(time_left.total_seconds())
        try:
            async with deadline:
                with self._until_the_end(deadline):
                    who = await self._admit(method, call.authorization)
                    structlog.contextvars.bind_contextvars(tenant=who.tenant, request_id=str(call.request_id))
                    # The call it serves has a place: refused for want of another, both would have been for nothing.
                    with nullcontext() if is_part_of_another(metadata) else self._places.taken(who.tenant):
                        yield
        except grpc.aio.AbortError:
            raise
        except Failure as failure:
            outcome = failure.reason
            await _abort(context, status.of_failure(failure))
        except protovalidate.ValidationError as error:
            outcome = "INVALID_REQUEST"
            await _abort(context, status.of_violations(error))
        except Exception as error:  # noqa: BLE001 - the last line: a bug becomes INTERNAL, never a broken connection
            if isinstance(error, TimeoutError) and deadline.expired():
                if deadline.when() == self._last_moment:
                    outcome = "SERVER_STOPS"
                    await _abort(context, status.of_failure(server_stops()))
                outcome = "DEADLINE_EXCEEDED"
                await _abort(context, status.deadline_exceeded())
            outcome = error_id = uuid4().hex[:12]
            log.error("call failed", method=method, error_id=error_id, exc_info=error)
            await _abort(context, status.internal(error_id))
        finally:
            log.debug("call", method=method, outcome=outcome, ms=round((time.monotonic() - started) * 1000, 1))

    @contextmanager
    def _until_the_end(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """Has the server's end bring `deadline` forward, which has begun and is not over: then nothing moves it."""
        self._deadlines.add(deadline)
        self._bring_forward(deadline)
        try:
            yield
        finally:
            self._deadlines.discard(deadline)

    def _time_left(self, context: Any) -> timedelta:
        remaining = context.time_remaining()
        if remaining is None:
            return self._settings.default_deadline
        return min(timedelta(seconds=max(0.0, min(remaining, 1e6))), self._settings.max_deadline)

    async def _admit(self, method: str, authorization: str) -> Caller:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("KEY_MISSING", "send an API key as metadata: authorization: Bearer hw_…")
        who = await self._keys.authenticate(key.strip())
        access = self._access[method]
        if access.any_scope.isdisjoint(who.scopes):
            raise Denied("SCOPE_MISSING", f"this call needs a key with {' or '.join(sorted(access.any_scope))}")
        if access.tenant_required and who.tenant is None:
            raise Denied("TENANT_KEY_REQUIRED", "this call is about one tenant's data: use a key of that tenant")
        set_caller(who)
        return who


def _forgiving(deserialize: Callable[[bytes], Message], max_bytes: int) -> Callable[[bytes], Message | Rejected]:
    """gRPC answers INTERNAL when a request does not parse; it is the caller's mistake and is told so."""

    def deserialized(data: bytes) -> Message | Rejected:
        if len(data) > max_bytes:
            return Rejected("MESSAGE_TOO_LARGE", f"a message holds at most {max_bytes} bytes: send less in one")
        try:
            return deserialize(data)
        except DecodeError:
            return Rejected("UNDECODABLE_REQUEST", "the request is not a valid message")

    return deserialized


def _valid(request: Any) -> Any:
    if isinstance(request, Rejected):
        raise request
    protovalidate.validate(request)
    return request


async def _valid_each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _valid(request)


async def _abort(context: Any, answer: status_pb2.Status) -> None:
    await context.abort_with_status(rpc_status.to_status(answer))
