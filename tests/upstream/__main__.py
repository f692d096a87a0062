"""The upstream as a program: prints one line of JSON, {"root", "url", "pid"}, when it listens; SIGTERM ends it.

    python -m tests.upstream [--port N] [--order JSON]
    python -m tests.upstream --instant [--port N]

JSON is an Order (see misbehaviour.py), the same that POST /_control takes later and GET /_control shows:

    {"usual": {"status": 429, "retry_after_s": 2}}
    {"mix": {"seed": 7, "shares": [{"share": 0.1, "conduct": {"fault": "reset"}}]}}
    {"upcoming": [{"fault": "stall"}, {"latency": {"median_s": 0.2, "sigma": 0.5}}]}

GET /_ledger[?since=N] tells every call and what it is billed; DELETE /_ledger forgets them.
"""

import argparse
import asyncio
import json
import os
import signal
import sys

import uvloop

from tests.upstream.instant import instant
from tests.upstream.misbehaviour import Order
from tests.upstream.server import upstream


async def _run(arguments: argparse.Namespace) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if arguments.instant:
        async with instant(arguments.port) as light:
            _tell(light.root)
            await ended.wait()
        return
    async with upstream(arguments.port) as server:
        server.script.take(arguments.order)
        _tell(server.root)
        await ended.wait()


def _tell(root: str) -> None:
    sys.stdout.write(json.dumps({"root": root, "url": f"{root}/v1", "pid": os.getpid()}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Runs until it is told to end."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.upstream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--instant", action="store_true", help="the light one: a fixed answer, no order, no ledger")
    parser.add_argument("--order", type=Order.model_validate_json, default=Order(), help="how to behave from the start")
    uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
