"""Guarantees: valid p-values, and promises that are kept."""

import numpy as np
import pytest

from services.inference.calibration.fit import search
from services.inference.calibration.guarantee import choice_stops, p_value, path, prove, split
from tests.inference.calibration.samples import chain


@pytest.mark.parametrize(("won", "right"), [(0.0, 0.8), (0.02, 0.8), (0.08, 0.6)])
def test_a_policy_just_below_the_target_is_seldom_passed(won: float, right: float) -> None:
    """At the boundary p is below 0.1 in at most 10 % of 1,000 samples, up to the sampling error of counting them."""
    target, count = 0.95, 150
    lost = won + (1 - target) * right
    generator = np.random.default_rng(5)
    # Lost questions are among those the last stage answers rightly, won ones are not.
    draws = generator.multinomial(count, [lost, won, right - lost, 1 - right - won], 1000)
    passed = [p_value(int(d[0]), int(d[1]), int(d[0] + d[2]), count, target) <= 0.1 for d in draws]
    assert np.mean(passed) < 0.1 + 3 * np.sqrt(0.09 / 1000)


def test_more_questions_prove_more() -> None:
    """The same shares give smaller p-values the more there are."""
    values = [p_value(2 * n, n, 80 * n, 100 * n, 0.95) for n in (1, 3, 9)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.05 < values[0]


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (10, 20)])
def test_equal_quality_cannot_be_proven(lost: int, won: int) -> None:
    """There is no margin for any number of questions to show."""
    assert p_value(lost, won, 800, 1000, 1.0) == 1.0


def test_promises_are_kept_as_often_as_they_say() -> None:
    """Of 60 promises at confidence 0.8 a fifth may be broken, and by chance a few more."""
    population = chain(20_000, seed=99)
    broken = 0
    for seed in range(60):
        proof = prove(chain(500, seed=seed), 0.95, 0.8, seed=seed)
        stop = choice_stops(population, proof.fit, proof.choice)
        right = population.correct[:, proof.choice.columns][np.arange(len(population)), stop]
        broken += right.mean() / population.accuracy[-1] < 0.95
    assert broken <= 60 * 0.2 + 3 * np.sqrt(60 * 0.2 * 0.8)


def test_enough_questions_prove_something_cheaper() -> None:
    """With 3,000 questions 95 % is proven at less than the last stage's cost, and the words say from how many."""
    proof = prove(chain(3000), 0.95, 0.9)
    assert proof.choice.cost_ratio < 0.9
    assert not proof.holds_by_itself
    assert f"proven from {proof.proven_from} questions" in proof.statement
    assert proof.fit_on + proof.proven_from == 3000


def test_too_few_questions_leave_the_last_stage_and_say_so() -> None:
    """Nothing is promised that could not be shown."""
    proof = prove(chain(80), 0.99, 0.95)
    assert proof.choice.columns == (2,)
    assert proof.choice.cost_ratio == 1.0
    assert "nothing cheaper than the last stage alone could be proven" in proof.statement


def test_no_question_is_both_fit_and_proven_on() -> None:
    """The two parts are apart and make the whole."""
    record = chain(200)
    fitting, proving = split(record, 3)
    seen = [set(part.signals[0]["logprob_mean"].tolist()) for part in (fitting, proving)]
    assert not seen[0] & seen[1]
    assert len(fitting) + len(proving) == 200


def test_the_path_only_ever_loosens_its_gates() -> None:
    """As fixed-sequence testing needs it, and never beyond what the fit chose."""
    found = search(chain(600))
    shape = found.cheapest(0.95)
    thresholds = np.asarray([choice.thresholds for choice in path(found, shape)])
    assert (np.diff(thresholds, axis=0) <= 0).all()
    assert np.allclose(thresholds[-1], shape.thresholds)
