"""Where a Python process spends its time, by py-spy, which samples it from outside."""

import asyncio
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.corpus import CannotMeasureError

_LINE_NUMBER = re.compile(r":\d+\)$")
_LOOP = "Runner.run (asyncio/runners.py)"
_RATE_HZ = 200
_SHOWN = 40
_WIDTH = 110


async def profiled(pid: int, seconds: int) -> str:
    """The functions in which the process was most often found, and those that it was most often found beneath.

    Threads that wait in Python are not counted. Compiled code counts as its nearest caller in Python: uvloop's and
    grpc's as the function that runs the loop, grpc's own thread as Thread.run. Shares are of all samples.

    Raises:
        CannotMeasureError: py-spy is missing or may not look at the process.
    """
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None:
        raise CannotMeasureError("py-spy is missing: pip install py-spy, or leave --profile out")
    with tempfile.NamedTemporaryFile(suffix=".raw") as raw:
        record = (program, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(_RATE_HZ))
        process = await asyncio.create_subprocess_exec(
            *record,
            *("--format", "raw", "--output", raw.name),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, problems = await process.communicate()
        if process.returncode != 0:
            raise CannotMeasureError(f"py-spy failed: {problems.decode(errors='replace').strip()[-500:]}")
        return top_functions(Path(raw.name).read_text())


def top_functions(raw: str) -> str:
    """A table of collapsed stacks: one a line, outermost first, frames separated by semicolons, then their count."""
    own: Counter[str] = Counter()
    beneath: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        # A line number would make several functions of one.
        frames = [_LINE_NUMBER.sub(")", frame) for frame in stack.split(";")]
        # What started the loop is above everything.
        frames = frames[frames.index(_LOOP) :] if _LOOP in frames else frames
        own[frames[-1]] += int(count)
        beneath.update(dict.fromkeys(frames, int(count)))
    samples = own.total() or 1
    lines = [f"{samples} samples at {_RATE_HZ} Hz"]
    for title, counts in (("own time", own), ("own time and what it calls", beneath)):
        lines.append(title)
        lines += [f"  {100 * count / samples:5.1f} %  {name[:_WIDTH]}" for name, count in counts.most_common(_SHOWN)]
    return "\n".join(lines)
