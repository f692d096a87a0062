"""The floor: a gRPC server in Python that does nothing. Run as a program it tells its address and serves until ended.

Under grpc.aio and uvloop as the platform's own server; answers have the size of an answer, and nothing is parsed.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import grpc
import uvloop

SERVICE = "benchmark.Echo"
UNARY = f"/{SERVICE}/Unary"
STREAM = f"/{SERVICE}/Stream"
FIRST_TAG = 0x12


async def _serve(answer: bytes) -> None:
    first = bytes((FIRST_TAG, 4)) + b"word"

    async def unary(_request: bytes, _context: object) -> bytes:
        return answer

    async def stream(_request: bytes, _context: object) -> AsyncIterator[bytes]:
        yield first
        yield answer

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await ended.wait()
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(_serve(bytes(int(sys.argv[1]))))
