"""The cascade: stages from the cheapest to the dearest, each with a gate. A pure state machine.

┌─ next stage ── draft ─── confidence ≥ threshold ──────► accepted: CONFIDENT
│                  │       confidence < threshold ──┐
│                  │       empty: it read and found nothing ► accepted: NO_ANSWER
│                  └────── failure ─────────────────┤
└──────────── stages left ◄─────────────────────────┤
                                                    └─ none left ─► the best draft: BEST_EFFORT
                                                                    or, under the floor: NO_ANSWER
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from services.contracts.failures import Busy
from services.inference.drafts import Draft


class Decision(Enum):
    """What became of a stage's draft."""

    ACCEPTED = "accepted"
    ESCALATED = "escalated"
    FAILED = "failed"


class AnswerStatus(Enum):
    """How good an answer is known to be."""

    CONFIDENT = "confident"
    BEST_EFFORT = "best effort"
    NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True)
class Gate:
    """What a stage's draft must reach to be the answer."""

    stage: str
    threshold: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a stage and why."""

    decision: Decision
    confidence: float
    """0 when there is no draft."""
    reason: str
    """In words, for people."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """How a cascade ended."""

    status: AnswerStatus
    stage: str = ""
    """Whose draft is the answer; empty when there is none."""
    draft: Draft | None = None


class Cascade:
    """One request's way through the stages."""

    def __init__(self, gates: Sequence[Gate], floor: float) -> None:
        """`floor`: a draft that no gate accepted and whose confidence is below it would be a guess."""
        self._gates = gates
        self._floor = floor
        self._position = 0
        self._accepted: Conclusion | None = None
        self._drafts: list[tuple[str, Draft]] = []
        self._failures: list[str] = []

    @property
    def next_gate(self) -> Gate | None:
        """The gate of the stage to run next; None when the cascade has ended."""
        if self._accepted is not None or self._position == len(self._gates):
            return None
        return self._gates[self._position]

    @property
    def at_last(self) -> bool:
        """Whether no stage is left after the next one."""
        return self._position == len(self._gates) - 1

    def take(self, draft: Draft) -> Verdict:
        """Judges the draft of the stage that was next."""
        gate = self._leave()
        if not draft.text:
            self._accepted = Conclusion(AnswerStatus.NO_ANSWER)
            return Verdict(Decision.ACCEPTED, draft.confidence, "it read the passages and found no answer in them")
        if draft.confidence >= gate.threshold:
            self._accepted = Conclusion(AnswerStatus.CONFIDENT, gate.stage, draft)
            return Verdict(Decision.ACCEPTED, draft.confidence, f"confidence {_against(draft, gate, 'reaches')}")
        self._drafts.append((gate.stage, draft))
        reason = f"confidence {_against(draft, gate, 'is below')}"
        if self._position < len(self._gates):
            return Verdict(Decision.ESCALATED, draft.confidence, reason)
        decision, outcome = self._at_the_end(draft)
        return Verdict(decision, draft.confidence, f"{reason} and no stage is left: {outcome}")

    def fail(self, reason: str) -> Verdict:
        """Records that the stage that was next gave no draft."""
        gate = self._leave()
        self._failures.append(f"{gate.stage}: {reason}")
        return Verdict(Decision.FAILED, 0.0, reason)

    def conclusion(self) -> Conclusion:
        """How it ended; to be asked when no stage is next.

        Raises:
            Busy: every stage failed.
        """
        if self._accepted is not None:
            return self._accepted
        if not self._drafts:
            if self._failures:
                raise Busy("CASCADE_FAILED", f"no stage gave an answer; {'; '.join(self._failures)}")
            return Conclusion(AnswerStatus.NO_ANSWER)
        stage, draft = self._best()
        if draft.confidence < self._floor:
            return Conclusion(AnswerStatus.NO_ANSWER)
        return Conclusion(AnswerStatus.BEST_EFFORT, stage, draft)

    def _leave(self) -> Gate:
        gate = self.next_gate
        if gate is None:
            raise RuntimeError("the cascade has ended")
        self._position += 1
        return gate

    def _at_the_end(self, draft: Draft) -> tuple[Decision, str]:
        stage, best = self._best()
        if best.confidence < self._floor:
            return Decision.ESCALATED, f"below {self._floor:.2f} an answer would be a guess"
        if best is draft:
            return Decision.ACCEPTED, "it is the best draft"
        return Decision.ESCALATED, f"the draft of {stage} is better"

    def _best(self) -> tuple[str, Draft]:
        """Of equally confident drafts the later stage's, whose model is the stronger."""
        return max(reversed(self._drafts), key=lambda named: named[1].confidence)


def _against(draft: Draft, gate: Gate, verb: str) -> str:
    return f"{draft.confidence:.2f} {verb} {gate.threshold:.2f}"
