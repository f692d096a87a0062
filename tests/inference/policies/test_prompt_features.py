"""Prompt features: the same everywhere, bounded, and what their names say."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.policies.prompt_features import SURFACE, VERSION, features, hashed_ngrams, is_feature, surface

PROMPT = "Why is 12 + 30 = 42, and isn\u2019t that _many_?\nA. Stra\u00dfe\nB. \u65e5\u672c\nC. none\n" * 3
EXPECTED = "ff149420fb7da6870907fe4c848afe2ea32f63ae620b965975dfacc065c46983"


def digest() -> str:
    """Of all features of a prompt."""
    rounded = {name: round(value, 9) for name, value in features(PROMPT).items()}
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()


def test_features_mean_what_they_meant() -> None:
    """Stored routers were fit on these very values: whoever changes one counts VERSION up and this digest with it."""
    assert (VERSION, digest()) == (1, EXPECTED)


def test_another_process_computes_the_same() -> None:
    """Nothing depends on a process's own hash seed."""
    command = "from tests.inference.policies import test_prompt_features as t; print(t.digest())"
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        told = subprocess.run(
            [sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert told.stdout.strip() == EXPECTED


@pytest.mark.parametrize(
    ("prompt", "name", "value"),
    [
        ("What is it?", "asks_what", 1.0),
        ("What is it?", "asks_why", 0.0),
        ("Pick one.\nA. x\nB) y\n(C) z", "log_options", 0.6020599913279624),
        ("x" * 99, "log_chars", 2.0),
        ("y " * 5000, "log_chars", 4.000043427276863),
        ("12 of 34", "digits", 0.5),
        ("ABCd", "upper_case", 0.75),
        ("Compute 2 + 2", "has_calculation", 1.0),
        ("Fill in: the ____ fox", "blank", 1.0),
        ("\u65e5\u672c", "not_ascii", 1.0),
    ],
)
def test_a_feature_is_what_its_name_says(prompt: str, name: str, value: float) -> None:
    """One example each."""
    assert surface(prompt)[name] == pytest.approx(value)


@given(st.text(max_size=300) | st.sampled_from([c * 9000 for c in "a \n{.1$'-\\\ud800"]))
def test_any_prompt_has_bounded_features_with_known_names(prompt: str) -> None:
    """Whatever is sent, a router can weigh it."""
    found = features(prompt)
    assert set(SURFACE) <= set(found)
    assert all(map(is_feature, found))
    assert all(-2 <= value <= 6 for value in found.values())


def test_a_long_prompt_costs_no_more_than_its_ends() -> None:
    """The middle of a long prompt is not read; its length is."""
    ends = ("start " * 400, " end" * 1000)
    one, other = (features(f"{ends[0]}{middle * 50_000}{ends[1]}") for middle in ("x", "7"))
    assert one == other


@given(st.text(alphabet="abc xyz", max_size=80))
def test_hashed_features_do_not_depend_on_case_and_space(prompt: str) -> None:
    """Only words count."""
    assert hashed_ngrams(prompt) == hashed_ngrams(f"  {prompt.upper()}\n")


@pytest.mark.parametrize("name", ["log_char", "word:4096", "word:-1", "word:01", "bytes:", "char:1", ""])
def test_other_names_are_no_features(name: str) -> None:
    """A weight nobody would ever use is a mistake."""
    assert not is_feature(name)
