"""What the contracts' rules ask for, in words: a pattern is no sentence for people.

`tests/runtime/test_rule_words.py` fails when a pattern in `proto/` has no words here.
"""

from collections.abc import Mapping
from types import MappingProxyType

PAGE_TOKEN = "send the next_page_token of the previous page"  # noqa: S105 - a sentence
_ID = "must be letters, digits, _ and - only"
_NAME = "must begin with a letter or digit and go on with letters, digits, _ and -, 63 at most"
_TENANT = "must begin with a letter and go on with letters, digits and hyphens, 40 at most, all lower case"
_FEATURE = "must be letters, digits, _, . and - only, 64 at most"
_MONTH = "must be a month, as 2026-11"
_DAY = "must be a day, as 2026-11-21"
_DOLLARS = "must be US dollars without sign or unit, as 12.50, with at most {} digits and {} decimals"
_SIGNED_DOLLARS = "must be US dollars without unit, as 12.50 or -3, with at most 15 digits and 12 decimals"

PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        r"\S": "must hold more than white space",
        r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$": (
            "must be one line of any characters but control characters such as tabs, and more than spaces"
        ),
        "^[A-Za-z0-9]*$": "must be letters and digits only",
        "^[A-Za-z0-9_-]*$": _ID,
        "^[A-Za-z0-9_.-]*$": _FEATURE,
        "^[A-Za-z0-9_.-]{0,64}$": _FEATURE,
        "^([*]|[A-Za-z0-9_.-]{1,64})$": f"{_FEATURE}; or * for all",
        "^[A-Za-z0-9_.:-]*$": "must be letters, digits, _, ., : and - only",
        "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$": _NAME,
        "^([A-Za-z0-9][A-Za-z0-9_-]{0,62})?$": _NAME,
        "^([0-9a-f]{32})?$": "must be a pseudonym of 32 hex digits, as Generate makes it; a name is not taken",
        "^[a-z][a-z0-9-]*$": _TENANT,
        "^([a-z][a-z0-9-]*)?$": _TENANT,
        "^([a-z][a-z0-9-]{0,39})?$": _TENANT,
        "^([*]|[a-z][a-z0-9-]{0,39})$": f"{_TENANT}; or * for all",
        "^20[0-9]{2}-(0[1-9]|1[0-2])$": _MONTH,
        "^20[0-9]{2}-[0-9]{2}-[0-9]{2}$": _DAY,
        "^[0-9]{1,11}([.][0-9]{1,9})?$": _DOLLARS.format(11, 9),
        "^([0-9]{1,11}([.][0-9]{1,12})?)?$": _DOLLARS.format(11, 12),
        "^([0-9]{1,9}([.][0-9]{1,12})?)?$": _DOLLARS.format(9, 12),
        "^-?[0-9]{1,15}([.][0-9]{1,12})?$": _SIGNED_DOLLARS,
        "^(-?[0-9]{1,15}([.][0-9]{1,12})?)?$": _SIGNED_DOLLARS,
        "^[0-9]*$": PAGE_TOKEN,
        "^([1-9][0-9]{0,8})?$": PAGE_TOKEN,
        "^(20[0-9]{2}-(0[1-9]|1[0-2]))?$": PAGE_TOKEN,
        "^([A-Za-z0-9][A-Za-z0-9_-]{0,62}[.][1-9][0-9]{0,9})?$": PAGE_TOKEN,
    }
)


def in_words(rule: str, value: object, told: str) -> str:
    """What the rule of this id and value asks for; other rules than patterns are `told` well by protovalidate."""
    if rule == "string.pattern":
        return PATTERNS.get(str(value), "has a form it may not have; the API's description of the field says which")
    if rule == "enum.not_in":
        return "must be one of the defined values other than unspecified"
    return told
