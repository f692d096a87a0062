"""A calibration from start to end: the policy it writes, its replay, its table and its pictures."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from services.inference.calibration.calibrate import calibrate
from services.inference.calibration.recorded import Recorded
from services.inference.calibration.replay import calibration_error, replay
from services.inference.calibration.report import mixed, table, write_plots
from services.inference.calibration.versions import written
from services.inference.policies.parsing import parse_policy
from services.inference.policies.schema import Policy
from tests.inference.calibration.samples import chain, policy


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
