"""The entry point, before anything is imported."""

import asyncio
import sys

import pytest

from services.cli.errors import Exit

INTERRUPTED_SOON = """
import signal
from services.cli import entry
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.02)
entry.run()
"""
"""As Ctrl-C does, 20 ms after it has begun to import, which takes half a second."""


@pytest.mark.parametrize("arguments", [("ask", "?"), ("run", "all")])
async def test_ctrl_c_while_importing_is_one_line(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Not a traceback of whatever was being imported."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", INTERRUPTED_SOON, *arguments), stderr=asyncio.subprocess.PIPE, env=environment
    )
    _, err = await process.communicate()
    assert (process.returncode, err) == (Exit.INTERRUPTED, b"headwater: interrupted\n")
