"""Page tokens are a list's own."""

import pytest

from services.contracts.failures import Rejected
from services.runtime.page_tokens import last_key, page_token_after


@pytest.mark.parametrize("key", ["acme", "d-1_x", "acme.feature.help=2Edesk.month", "政策"])
def test_a_list_goes_on_after_the_key_its_token_was_made_of(key: str) -> None:
    """Whatever keys look like; without a token it begins."""
    assert last_key("documents", page_token_after("documents", key)) == key
    assert last_key("documents", "") == ""


@pytest.mark.parametrize("token", ["x", "-1", "AAAA", "%%%", "00000000", "00000000acme", "é" * 20])
def test_what_no_page_gave_is_refused(token: str) -> None:
    """Taken for a place, it would leave out what is before it, in silence."""
    with pytest.raises(Rejected, match="send the next_page_token") as refused:
        last_key("documents", token)
    assert refused.value.reason == "PAGE_TOKEN_INVALID"


def test_a_changed_token_and_another_lists_are_refused() -> None:
    """The check is of the list and all of the key."""
    token = page_token_after("tenants", "acme")
    for wrong in (token + "x", token[:-1], page_token_after("documents", "acme")):
        with pytest.raises(Rejected):
            last_key("tenants", wrong)
