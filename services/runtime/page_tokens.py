"""Page tokens: where a list goes on, with a check, so that anything else is refused and not taken for a place."""

import zlib
from typing import Final

from services.contracts.failures import Rejected
from services.runtime.rule_words import PAGE_TOKEN

_CHECK_DIGITS: Final = 8


def page_token_after(listing: str, last: str) -> str:
    """The token with which `listing` goes on after the key `last`."""
    return f"{zlib.crc32(f'{listing} {last}'.encode()):0{_CHECK_DIGITS}x}{last}"


def last_key(listing: str, token: str) -> str:
    """The key that the previous page ended with; "" for the first page.

    Raises:
        Rejected: `listing` gave no such token.
    """
    last = token[_CHECK_DIGITS:]
    if token and token != page_token_after(listing, last):
        raise Rejected("PAGE_TOKEN_INVALID", PAGE_TOKEN)
    return last
