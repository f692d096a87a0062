"""Attribution: what a request is for, in cost reports; every call that is made for it carries the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a request is for, in cost reports. Labels of the caller's own: nothing is decided by them."""

    feature: str = ""
    key_id: str = ""
    """The API key that made the request."""
    outcome_id: str = ""
    user: str = ""
    """A pseudonym."""
    labels: Mapping[str, str] = field(default_factory=dict)
