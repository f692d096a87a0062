"""What choices reach: each made into the policy that it stands for, and replayed on all of the record."""

from dataclasses import dataclass

from services.inference.calibration.fit import Choice, Search
from services.inference.calibration.recorded import Recorded
from services.inference.calibration.replay import Score, replay
from services.inference.calibration.versions import gated
from services.inference.policies.schema import OperatingPoint, Policy, Router

QUALITIES = (0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0)
"""Of the curve and of the operating points."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A choice, and what it does."""

    asked: float
    """The quality it was chosen for."""
    choice: Choice
    policy: Policy
    """That it stands for, without operating points."""
    score: Score
    """Of the policy, replayed."""

    def point(self, guaranteed_with: float | None = None) -> OperatingPoint:
        """As an operating point of the policy. The last stage alone has all of its own quality."""
        gates = {stage.name: stage.gate.threshold for stage in self.policy.stages[:-1]}
        return OperatingPoint(
            quality=self.asked if gates else 1.0,
            thresholds=gates,
            cost_ratio=round(self.cost_ratio, 6),
            guaranteed_with=guaranteed_with,
        )

    @property
    def estimated(self) -> float:
        """The quality to expect on other questions: from probabilities that had not seen the question."""
        return self.choice.quality

    @property
    def quality(self) -> float:
        """As replayed."""
        return self.score.quality

    @property
    def cost_ratio(self) -> float:
        """As replayed."""
        return self.score.cost_ratio


@dataclass(frozen=True, slots=True)
class Trials:
    """Replays the choices of a search."""

    recorded: Recorded
    """All of it: the search may have seen only a part."""
    policy: Policy
    found: Search

    def of(self, asked: float, choice: Choice, router: Router | None = None) -> Reached:
        """What `choice` does."""
        made = gated(self.policy, self.found, choice, router)
        score = replay(self.recorded.of(tuple(stage.name for stage in made.stages)), made)
        return Reached(asked, choice, made, score)

    def cheapest(self, asked: float) -> Reached:
        """What reaches a quality at the least cost."""
        best = self.of(asked, self.found.cheapest(asked))
        # What was cheaper than the last stage on a part of the record need not be on all of it.
        return best if best.cost_ratio < 1 else self.of(asked, self.found.always_last)

    def points(self, chosen: Reached) -> list[Reached]:
        """`chosen` and, with the same stages and router, what reaches other qualities.

        From one to the next both quality and cost rise: what is dearer and no better is left out.
        """
        columns, points = chosen.choice.columns, [chosen]
        others = [(asked, self.found.cheapest(asked, columns)) for asked in QUALITIES if asked != chosen.asked]
        tried = [
            self.of(asked, choice, chosen.policy.router)
            for asked, choice in others
            if len(columns) > 1 and choice.columns == columns and choice.quality >= asked
        ]
        for one in tried:
            if one.asked > chosen.asked and one.cost_ratio < 1 and _rises(points[-1], one):
                points.append(one)
        for one in reversed(tried):
            if one.asked < chosen.asked and _rises(one, points[0]):
                points.insert(0, one)
        return points


def _rises(one: Reached, other: Reached) -> bool:
    same = one.cost_ratio == other.cost_ratio and one.quality == other.quality
    return same or (one.cost_ratio < other.cost_ratio and one.quality < other.quality)
