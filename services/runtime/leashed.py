"""Runs a command that dies with its parent: ``leashed.py <parent pid> <command> <argument>…``.

A stand-alone script: it asks the kernel (Linux) to end this process when the parent goes, however it goes, and then
becomes the command. Elsewhere the command outlives a killed parent and is ended at the next start.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Sets the leash and becomes the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - this is its purpose; the command comes from our own code


if __name__ == "__main__":
    main()
