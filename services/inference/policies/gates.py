"""Gates: from a draft's signals to the probability that it is right, and to a verdict in words. Plain arithmetic."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from services.inference.policies.schema import Gate, IsotonicCalibrator, LogisticCalibrator, Signal

Signals = Mapping[str, float | None]
"""By name; None, or none at all, where a signal cannot be known."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a gate makes of a draft."""

    probability: float
    """That the draft is right, as far as the signals tell; 0 to 1."""
    threshold: float
    accepted: bool
    reason: str
    """In words, for people."""
    known: bool = True
    """Whether anything tells how good the draft is: a signal, or what the policy says for when there is none."""


def signals_of(gate: Gate) -> frozenset[Signal]:
    """The signals that `gate` looks at; no others need be computed."""
    if gate.calibrator is None:
        return frozenset(("confidence",))
    if isinstance(gate.calibrator, IsotonicCalibrator):
        return frozenset((gate.calibrator.signal,))
    return frozenset(gate.calibrator.weights)


def judge(gate: Gate, signals: Signals, threshold: float | None = None) -> Judgement:
    """Whether a draft with `signals` passes `gate`.

    Args:
        gate: the stage's.
        signals: at least those of `signals_of(gate)` that can be known.
        threshold: the one that the caller's target quality asks for; None takes the gate's own.
    """
    limit = gate.threshold if threshold is None else threshold
    missing = sorted(name for name in signals_of(gate) if signals.get(name) is None)
    probability = gate.missing if missing else _probability(gate, signals)
    accepted = probability >= limit
    reason = f"confidence {probability:.2f} {'reaches' if accepted else 'is below'} {limit:.2f}"
    if f"{probability:.2f}" == f"{limit:.2f}" and not accepted:
        reason = f"confidence {probability:.4f} is below {limit:.4f}"
    if missing:
        reason += f" ({', '.join(missing)} could not be known)"
    if missing and not gate.missing:
        reason = f"nothing tells how good it is ({', '.join(missing)} could not be known)"
        reason += ", and its gate takes any draft" if accepted else f": below {limit:.2f}"
        return Judgement(probability, limit, accepted, reason, known=False)
    return Judgement(probability, limit, accepted, reason)


def _probability(gate: Gate, signals: Signals) -> float:
    known = {name: value for name, value in signals.items() if value is not None}
    if gate.calibrator is None:
        return min(1.0, max(0.0, known["confidence"]))
    if isinstance(gate.calibrator, LogisticCalibrator):
        return logistic(gate.calibrator, known)
    return isotonic(gate.calibrator, known[gate.calibrator.signal])


def logistic(calibrator: LogisticCalibrator, known: Mapping[str, float]) -> float:
    """1 / (1 + e^-z) where z is the intercept and the weighted sum of the signals; 0 to 1 for any finite input."""
    return sigmoid(calibrator.intercept + sum(weight * known[name] for name, weight in calibrator.weights.items()))


def isotonic(calibrator: IsotonicCalibrator, value: float) -> float:
    """The calibrator's curve at `value`: linear between its points, level before the first and after the last."""
    x, y = calibrator.x, calibrator.y
    after = bisect_right(x, value)
    if after == 0:
        return y[0]
    if after == len(x):
        return y[-1]
    share = (value - x[after - 1]) / (x[after] - x[after - 1])
    return y[after - 1] + share * (y[after] - y[after - 1])


def sigmoid(z: float) -> float:
    """The logistic function, without overflow."""
    if z >= 0:
        return 1 / (1 + math.exp(-z))
    power = math.exp(max(z, -700.0))
    return power / (1 + power)
