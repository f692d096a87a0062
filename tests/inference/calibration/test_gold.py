"""Gold files: what is read of them, and what is refused with its line."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.contracts.failures import Rejected
from services.inference.calibration.gold import LEAST_QUESTIONS, dollars, read_recorded
from tests.inference.calibration.samples import STAGES, chain, lines, write

Rows = list[dict[str, Any]]


def _output(rows: Rows, row: int = 1, stage: str = "small") -> dict[str, Any]:
    found: dict[str, Any] = rows[row]["outputs"][stage]
    return found


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Every stage's output of every question is read, in the policy's order of stages."""
    recorded = chain(60)
    read = read_recorded(write(tmp_path / "gold.jsonl", lines(recorded)), STAGES)
    assert read.stages == STAGES
    assert np.array_equal(read.correct, recorded.correct)
    assert np.allclose(read.cost, recorded.cost)
    assert np.allclose(read.signals[1]["logprob_mean"], recorded.signals[1]["logprob_mean"])


def test_an_answer_is_compared_with_the_references(tmp_path: Path) -> None:
    """Without `correct` an answer is right when it says the same as one of the references."""
    rows = lines(chain(60))
    for row in (0, 1):
        rows[row]["references"] = ["Forty-two", "42"]
        _output(rows, row).pop("correct")
    _output(rows, 0)["answer"], _output(rows, 1)["answer"] = "42.", "43"
    read = read_recorded(write(tmp_path / "gold.jsonl", rows), STAGES)
    assert read.correct[:2, 0].tolist() == [1.0, 0.0]


def test_signals_are_computed_of_raw_logprobs(tmp_path: Path) -> None:
    """Token log-probabilities give the signals that serving computes of them."""
    rows = lines(chain(60))
    _output(rows, 0).pop("signals")
    _output(rows, 0)["logprobs"] = [{"logprob": -1.0, "runner_up": -3.0}, {"logprob": -2.0}]
    read = read_recorded(write(tmp_path / "gold.jsonl", rows), STAGES)
    assert read.signals[0]["logprob_mean"][0] == pytest.approx(-1.5)
    assert read.signals[0]["margin_mean"][0] == pytest.approx(2.0)
    assert math.isnan(read.signals[0]["margin_mean"][1])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda rows: _output(rows).update(correct="yes"),
            "line 2: outputs.small.correct: input should be a valid bool",
        ),
        (lambda rows: _output(rows).pop("cost_usd"), "line 2: outputs.small.cost_usd: has no price"),
        (lambda rows: _output(rows).update(cost_usd="-1"), "line 2: outputs.small.cost_usd: must be a decimal number"),
        (
            lambda rows: _output(rows).update(cost_usd=0.1),
            "line 2: outputs.small.cost_usd: input should be a valid str",
        ),
        (lambda rows: _output(rows).update(price=1), "line 2: outputs.small.price: there is no such field"),
        (
            lambda rows: _output(rows).update(signals={"vibe": 1.0}),
            "line 2: outputs.small.signals: there is no signal 'vibe'",
        ),
        (lambda rows: _output(rows).update(latency_ms=-5.0), "line 2: outputs.small.latency_ms"),
        (lambda rows: _output(rows).update(signals={"logprob_mean": math.nan}), "line 2: NaN is no number in JSON"),
        (lambda rows: rows[1]["outputs"].pop("medium"), "line 2: outputs: stage 'medium' is missing"),
        (lambda rows: rows[1]["outputs"].update(huge=_output(rows)), "line 2: outputs: the policy has no stage 'huge'"),
        (lambda rows: rows[4].update(id="q1"), "line 5: id: line 2 has the same"),
        (
            lambda rows: _output(rows).pop("correct"),
            "line 2: outputs.small: give correct, or an answer here and references",
        ),
        (
            lambda rows: [_output(rows, r).update(correct=True) for r in range(60)],
            "all answers of stage 'small' are right",
        ),
        (lambda rows: [_output(rows, r, "large").update(correct=False) for r in range(60)], "stage 'large' are wrong"),
        (
            lambda rows: [_output(rows, r, "large").update(cost_usd="0") for r in range(60)],
            "stage 'large' costs nothing",
        ),
        (
            lambda rows: [_output(rows, r, "large").update(cost_usd="1e-30") for r in range(60)],
            "stage 'large', the last, costs less than a thousandth of stage 'medium'",
        ),
        (lambda rows: rows.__delitem__(slice(LEAST_QUESTIONS - 1, None)), f"there are {LEAST_QUESTIONS - 1} questions"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, spoil: Callable[[Rows], object], told: str) -> None:
    """A flaw is refused, with where it is and what to change."""
    rows = lines(chain(60))
    spoil(rows)
    with pytest.raises(Rejected) as refused:
        read_recorded(write(tmp_path / "gold.jsonl", rows), STAGES)
    assert told in refused.value.message


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"id": "a", "id": "b"}', "\ud800", "[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path: Path, line: str) -> None:
    """A line that cannot be read is named, whatever is in it."""
    path = tmp_path / "gold.jsonl"
    path.write_text(line + "\n", encoding="utf-8", errors="surrogatepass")
    with pytest.raises(Rejected, match="line 1: "):
        read_recorded(path, STAGES)


def test_a_flaw_on_every_line_is_told_once(tmp_path: Path) -> None:
    """Twenty times the same reason would hide the others."""
    rows = lines(chain(60))
    for row in range(10):
        _output(rows, row).pop("cost_usd")
    rows[12]["outputs"].pop("large")
    with pytest.raises(Rejected) as refused:
        read_recorded(write(tmp_path / "gold.jsonl", rows), STAGES)
    assert refused.value.message.count("has no price") == 1
    assert "(and on 9 lines after it); line 13: outputs: stage 'large' is missing" in refused.value.message


def test_no_answer_is_repeated_in_a_message(tmp_path: Path) -> None:
    """What a model or a person wrote stays out of messages."""
    rows = lines(chain(60))
    rows[0]["prompt"] = "secret-prompt"
    _output(rows, 0).update(answer="secret-answer", correct="secret-verdict")
    with pytest.raises(Rejected) as refused:
        read_recorded(write(tmp_path / "gold.jsonl", rows), STAGES)
    assert "secret" not in refused.value.message


def test_a_replay_passes_over_stages_that_the_policy_left_out(tmp_path: Path) -> None:
    """A calibrated policy has fewer stages than the record it was calibrated on."""
    path = write(tmp_path / "gold.jsonl", lines(chain(60)))
    assert read_recorded(path, ("small", "large"), purpose="replay").stages == ("small", "large")


@pytest.mark.parametrize("text", ["", "free", "NaN", "Infinity", "-0.1", "1e", "0" * 50])
def test_what_is_no_amount_is_no_amount(text: str) -> None:
    """Only finite decimal numbers that are not negative are money."""
    assert dollars(text) is None
