"""What an operator may say about an endpoint."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.inference.providers.settings import EndpointSettings


def _settings(**changes: Any) -> EndpointSettings:
    return EndpointSettings.model_validate({"base_url": "https://api.example/v1", "model": "m", **changes})


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://api.example"},
        {"base_url": "https://api.example/v1?key=1"},
        {"api_key": "sk-1\r\nHost: elsewhere"},
        {"headers": {"X-Team": "a\nb"}},
        {"headers": {"X Team": "a"}},
        {"headers": {"Content-Length": "5"}},
        {"body": {"messages": []}},
        {"connections": 0},
        {"total_timeout": "PT0S"},
        {"modell": "m"},
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    """At the start, not at the first call."""
    with pytest.raises(ValidationError):
        _settings(**wrong)


def test_credentials_are_not_shown() -> None:
    """Neither the key nor a header's value."""
    assert "hush" not in repr(_settings(api_key="hush", headers={"X-Key": "hush"}))


@pytest.mark.parametrize(("changes", "priced_as"), [({}, "openai"), ({"provider": "azure"}, "azure")])
def test_prices_are_the_protocols_unless_said(changes: dict[str, Any], priced_as: str) -> None:
    """Azure and others have their own."""
    assert _settings(**changes).priced_as == priced_as
