"""The entry point. Ctrl-C ends a command in one line from its first moment on, also while it is being imported."""

import importlib
import os
import sys

_INTERRUPTED = 130
"""As `errors.Exit` has it, which takes a while to import."""


def run() -> None:
    """Runs the command that was typed, and ends the process with its code."""
    try:
        main = importlib.import_module("services.cli.main")
    except KeyboardInterrupt:
        os.write(sys.stderr.fileno(), b"headwater: interrupted\n")
        os._exit(_INTERRUPTED)
    main.run()


if __name__ == "__main__":
    run()
