"""Runs edge_optimizing.py for one shard."""

import asyncio
import os
import sys
from pathlib import Path

from services.runtime import leashed

_SCRIPT = Path(__file__).with_name("edge_optimizing.py")


async def optimized(folder: Path) -> None:
    """Optimizes the shard in `folder`; cancelling it ends that.

    Raises:
        RuntimeError: the optimizer failed.
    """
    # Leashed: if it outlived a killed store, the next store could give the folder's name to another optimizer.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-E", leashed.__file__, str(os.getpid())),
        *(sys.executable, str(_SCRIPT), str(folder)),
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        if await process.wait():
            raise RuntimeError(f"the optimizer ended with {process.returncode}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
