"""Waiting for a process of ours to be ready."""

import asyncio
import json
from pathlib import Path
from time import monotonic


async def ready_address(process: asyncio.subprocess.Process, log: Path, limit_s: float) -> str:
    """The address that the process says in its `log` (lines of JSON) it is ready on.

    Raises:
        TimeoutError: it ended, or has not said so within `limit_s`; the end of the log is in the message.
    """
    end = monotonic() + limit_s
    while monotonic() < end and process.returncode is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and (event := json.loads(line)).get("event") == "ready":
                return str(event["address"])
        await asyncio.sleep(0.05)
    raise TimeoutError(f"it did not start:\n{log.read_text()[-4000:]}")
