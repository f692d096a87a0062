"""Text of others in a prompt: it stands between tags of ours, and nothing in it may look like one. Pure."""

import re

_TAG = re.compile(r"<(?=\s*/?\s*(?:passages?|question|answer)\b)", re.IGNORECASE)


def as_data(text: str) -> str:
    """`text` with nothing in it that looks like our own tags."""
    return _TAG.sub("‹", text)  # noqa: RUF001 - any sign that is not "<"
