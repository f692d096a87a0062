"""The search: cheapest stages and thresholds for a quality."""

import numpy as np
import pytest

from services.contracts.failures import Rejected
from services.inference.calibration.fit import LEVELS, Choice, Search, search, stops
from services.inference.calibration.guarantee import choice_stops
from services.inference.calibration.recorded import Recorded
from tests.inference.calibration.samples import chain, dear


def _quality(record: Recorded, found: Search, choice: Choice) -> float:
    stop = choice_stops(record, found, choice)
    right = record.correct[:, choice.columns][np.arange(len(record)), stop]
    return float(right.mean() / record.accuracy[-1])


@pytest.mark.parametrize("target", [0.9, 0.95, 0.98])
def test_the_quality_holds_on_questions_to_come(target: float) -> None:
    """Six choices, fit on 1,200 questions each, keep their target on 20,000 others in the mean, and save."""
    others = chain(20_000, seed=99)
    searches = [search(chain(1200, seed=seed)) for seed in range(6)]
    choices = [found.cheapest(target) for found in searches]
    qualities = [_quality(others, found, choice) for found, choice in zip(searches, choices, strict=True)]
    assert np.mean(qualities) > target - 0.01
    assert np.mean([choice.cost_ratio for choice in choices]) < 0.95


def test_a_higher_quality_is_never_cheaper() -> None:
    """The curve rises."""
    found = search(chain(1200))
    costs = [found.cheapest(target).cost_ratio for target in (0.8, 0.9, 0.95, 0.98, 1.0)]
    assert costs == sorted(costs)


@pytest.mark.parametrize("target", [0.9, 0.95, 0.98, 1.0])
def test_nothing_dearer_than_the_last_stage_alone_is_chosen(target: float) -> None:
    """It keeps all of its own quality: gates that cost more are tried, and not taken."""
    found = search(dear())
    assert any(choice.quality >= target for choice in found.choices)
    assert found.cheapest(target) == found.always_last


def test_few_questions_get_one_gate_and_no_threshold_below_a_half() -> None:
    """On a few hundred questions the search is kept small."""
    found = search(chain(285))
    assert {len(choice.columns) for choice in found.choices} == {2}
    assert {choice.thresholds[0] for choice in found.choices} == set(LEVELS)


def test_luck_of_an_earlier_stage_does_not_lower_the_bar() -> None:
    """Where an earlier stage did better on the record, its accuracy is what must be reached."""
    record = chain(400)
    record.correct[:, 1] = np.maximum(record.correct[:, 1], record.correct[:, 2])
    found = search(record)
    assert found.reference > 1
    assert found.cheapest(0.98).quality >= 0.98 * found.reference


def test_signals_that_say_nothing_leave_the_last_stage() -> None:
    """Without signals no gate can be fit."""
    record = chain(300)
    blind = Recorded(record.stages, record.correct, record.cost, ({}, {}, {}))
    assert search(blind).cheapest(0.98).columns == (2,)


def test_a_resample_counts_each_question_as_often_as_it_was_drawn() -> None:
    """Weights stand for copies, so that no copy is on both sides of a split."""
    record = chain(100)
    drawn = record.resampled(np.random.default_rng(0))
    assert drawn.counts.sum() == 100
    assert len(drawn) < 100


def test_a_draft_ends_at_the_first_gate_that_accepts_it() -> None:
    """Thresholds are reached or not, in order."""
    told = [np.asarray([0.9, 0.1, 0.1]), np.asarray([0.9, 0.9, 0.1])]
    assert stops(told, (0.5, 0.5)).tolist() == [0, 1, 2]


def test_a_last_stage_that_is_never_right_is_refused() -> None:
    """There is nothing to measure quality against."""
    record = chain(100)
    record.correct[:, 2] = 0
    with pytest.raises(Rejected, match="at least one right answer"):
        search(record)
