"""A calibration from start to end: the policy it writes, its replay, its table and its pictures."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from services.inference.calibration.calibrate import calibrate
from services.inference.calibration.recorded import Recorded
from services.inference.calibration.replay import calibration_error, replay
from services.inference.calibration.report import drawn, mixed, table, write_plots
from services.inference.calibration.versions import written
from services.inference.policies.parsing import parse_policy
from services.inference.policies.schema import Policy, Router, RouterModel
from tests.inference.calibration.samples import chain, dear, policy


def _kept(record: Recorded, made: Policy) -> Recorded:
    return record.of(tuple(stage.name for stage in made.stages))


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_what_is_written_is_a_valid_policy_that_means_the_same(confidence: float | None) -> None:
    """The YAML parses, comments and all, to the policy that was made."""
    made = calibrate(chain(1200), policy(), 0.95, confidence)
    read = parse_policy(written(made.policy, made.notes), known_models=None, priced=None)
    assert read == made.policy


def test_a_replay_on_other_questions_shows_the_quality_and_the_saving() -> None:
    """What was calibrated on some questions holds on others."""
    made = calibrate(chain(1200), policy(), 0.95)
    score = replay(_kept(chain(20_000, seed=4), made.policy), made.policy)
    assert score.quality > 0.935
    assert score.cost_ratio < 0.8
    assert sum(stage.answered for stage in score.stages) == pytest.approx(1)
    assert score.stages[-1].ran == pytest.approx(score.stages[-1].answered)
    assert 100 <= score.latency_ms["p50"] <= score.latency_ms["p95"] <= 700


def test_a_stated_quality_chooses_its_operating_point() -> None:
    """A caller who asks for more pays more."""
    made = calibrate(chain(1200), policy(), 0.95)
    record = _kept(chain(2000, seed=4), made.policy)
    costs = [replay(record, made.policy, quality).cost_ratio for quality in (0.9, 0.95, 1.0)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_a_proven_policy_says_with_which_confidence() -> None:
    """The operating point that was proven is told apart from those that are estimates."""
    made = calibrate(chain(3000), policy(), 0.95, 0.9)
    proven = [point.quality for point in made.policy.operating_points if point.guaranteed_with == 0.9]
    assert proven == [0.95]


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize("target", [0.9, 0.95])
def test_operating_points_rise_in_quality_and_cost_below_the_last_stages(
    confidence: float | None, target: float
) -> None:
    """Replayed for each point's quality: what costs more is better, and none costs more than the last stage alone."""
    record = chain(1200)
    made = calibrate(record, policy(), target, confidence).policy
    scores = [replay(_kept(record, made), made, point.quality) for point in made.operating_points]
    told = [point.cost_ratio for point in made.operating_points]
    assert told == pytest.approx([score.cost_ratio for score in scores], abs=1e-6)
    assert max(told) <= 1
    for before, after in pairwise(scores):
        same = (before.cost_ratio, before.quality) == (after.cost_ratio, after.quality)
        assert same or (before.cost_ratio < after.cost_ratio and before.quality < after.quality)


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_what_is_told_is_what_the_policy_does_on_the_same_questions(confidence: float | None) -> None:
    """Quality and cost are those of its replay, in numbers and in words."""
    record = chain(1200)
    made = calibrate(record, policy(), 0.95, confidence)
    read = parse_policy(written(made.policy, made.notes), known_models=None, priced=None)
    score = replay(_kept(record, read), read)
    assert (made.outcome.chosen.quality, made.outcome.chosen.cost_ratio) == (score.quality, score.cost_ratio)
    assert f"{score.quality:.1%} of the last stage's accuracy at {score.cost_ratio:.1%} of its cost" in made.notes[1]


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_where_no_gate_saves_the_last_stage_is_asked_alone(confidence: float | None) -> None:
    """The policy has that one stage, replays at exactly its cost, and says why, whatever prompts a router could see."""
    record = replace(dear(), prompts=tuple(f"what is {row}?" for row in range(400)))
    made = calibrate(record, policy(), 0.98, confidence)
    assert [stage.name for stage in made.policy.stages] == ["large"]
    assert made.policy.router is None
    assert [(point.quality, point.cost_ratio) for point in made.policy.operating_points] == [(1.0, 1.0)]
    score = replay(_kept(record, made.policy), made.policy)
    assert (score.quality, score.cost_ratio) == (1.0, 1.0)
    assert "nothing cheaper than" in made.notes[0]


def test_a_quality_that_no_point_reaches_asks_only_the_last_stage_with_a_router_too() -> None:
    """As serving does, also on a record that has no prompts."""
    model = RouterModel(intercept=0.0, weights={"log_chars": 0.1})
    routed = policy().model_copy(update={"router": Router(models={"small": model}, skip_below={"small": 0.1})})
    assert replay(chain(100), routed, 0.99).stages[-1].ran == 1.0


def test_all_that_is_drawn_lies_within_the_axes() -> None:
    """A stage that costs more than the last is seen, and so is what was chosen."""
    outcome = calibrate(dear(), policy(), 0.95).outcome
    assert max(cost for _, cost, _ in outcome.stages) > 1.08
    (axes,) = drawn(outcome).axes
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    # Those without a label of their own go across the axes: the quality that was asked for.
    series = [np.asarray(line.get_xydata()) for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert len(series) == 4
    for x, y in np.concatenate(series):
        assert left <= x <= right
        assert bottom <= y <= top


def test_a_policy_that_accepts_everything_at_once_costs_its_first_stage() -> None:
    """Replay counts what ran and nothing else."""
    record = chain(500)
    score = replay(record, policy())
    assert score.accuracy == pytest.approx(record.accuracy[0])
    assert score.cost_ratio == pytest.approx(0.05)
    assert score.latency_ms == {"p50": 100.0, "p95": 100.0, "mean": 100.0}


def test_perfect_probabilities_have_no_calibration_error() -> None:
    """And those that are always 0.3 too high have 0.3."""
    correct = np.tile([1.0, 0.0], 500)
    assert calibration_error(np.full(1000, 0.5), correct, np.ones(1000)) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(np.full(1000, 0.8), correct, np.ones(1000)) == pytest.approx(0.3)


def test_the_table_and_the_page_tell_the_chosen_point(tmp_path: Path) -> None:
    """The page holds its picture and asks the network for nothing."""
    outcome = calibrate(chain(600), policy(), 0.95).outcome
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table(outcome))
    assert f"{outcome.chosen.cost_ratio:.1%}" in captured.get()
    picture, page = write_plots(outcome, tmp_path / "plots")
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert "data:image/png;base64," in text
    assert "http" not in text.replace("http-equiv", "")


def test_mixing_is_the_upper_hull_of_the_stages() -> None:
    """A stage that drawing lots between two others beats is not on it."""
    assert mixed([(0.1, 0.5), (0.1, 0.4), (0.3, 0.55), (0.5, 0.9), (1.0, 1.0)]) == [(0.1, 0.5), (0.5, 0.9), (1.0, 1.0)]
