"""What all groups of settings share."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from services.runtime.settings import ProcessSettings


@pytest.mark.parametrize(
    ("typed", "span"),
    [
        ("6s", timedelta(seconds=6)),
        ("0s", timedelta()),
        ("90", timedelta(seconds=90)),
        ("PT5M", timedelta(minutes=5)),
        ("0:05:00", timedelta(minutes=5)),
        (1.5, timedelta(seconds=1.5)),
        (timedelta(hours=1), timedelta(hours=1)),
    ],
)
def test_a_duration_is_typed_as_on_the_command_line(typed: object, span: timedelta) -> None:
    """Or as pydantic takes it."""
    assert ProcessSettings.model_validate({"drain_timeout": typed}).drain_timeout == span


@pytest.mark.parametrize("typed", ["soon", "-5s", "-PT5S", -1, "9" * 30 + "d"])
def test_what_is_no_duration_is_refused(typed: object) -> None:
    """Nor is there one that is negative."""
    with pytest.raises(ValidationError):
        ProcessSettings.model_validate({"drain_timeout": typed})
