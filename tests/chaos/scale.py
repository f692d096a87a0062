"""How hard the chaos tests shake: small by default, at full size with HEADWATER_CHAOS=full (`make chaos`)."""

import logging
import os

FULL = os.environ.get("HEADWATER_CHAOS") == "full"

MINUTES = int(os.environ.get("HEADWATER_CHAOS_MINUTES", "60"))
"""How long what has no end of its own goes on at full size."""

SEED = int(os.environ.get("HEADWATER_CHAOS_SEED", "20261121"))
"""Of what is drawn by lot."""

measured = logging.getLogger("chaos")
"""What a test measured; `make chaos` shows it."""


def scaled(small: int, full: int) -> int:
    """`small` in CI, `full` at full size."""
    return full if FULL else small
