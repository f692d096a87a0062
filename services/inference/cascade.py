"""The cascade: stages from the cheapest to the dearest, each with a gate. A pure state machine.

┌─ next stage ─┬─ draft ── probability ≥ threshold ─────► accepted: CONFIDENT, or UNJUDGED
│              │           probability < threshold ──┐
│              │           empty: nothing found ─────────┤ ► accepted, if its gate believes that: NO_ANSWER
│              ├─ failure ───────────────────────────┤
│              └─ skipped: not worth it, or no room ─┤
└──────────── stages left ◄──────────────────────────┤
                                                     └─ none left ─► the best draft: BEST_EFFORT
                                                                     or, under the floor: NO_ANSWER
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from services.contracts.failures import Busy, Exhausted, Rejected
from services.inference.drafts import Draft
from services.inference.policies.gates import Judgement


class Decision(Enum):
    """What became of a stage's draft."""

    ACCEPTED = "accepted"
    ESCALATED = "escalated"
    FAILED = "failed"
    SKIPPED = "skipped"


class AnswerStatus(Enum):
    """How good an answer is known to be."""

    CONFIDENT = "confident"
    UNJUDGED = "unjudged"
    BEST_EFFORT = "best effort"
    NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a stage and why."""

    decision: Decision
    probability: float
    """That the draft is right; 0 when there is none, or nothing tells."""
    reason: str
    """In words, for people."""
    known: bool = True
    """Whether anything tells the probability."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """How a cascade ended."""

    status: AnswerStatus
    stage: str = ""
    """Whose draft it is; empty when there is none."""
    draft: Draft | None = None
    """The answer; without one, the best guess."""
    probability: float = 0.0
    """That the draft is right."""


@dataclass(frozen=True, slots=True)
class _Judged:
    stage: str
    draft: Draft
    probability: float


class Cascade:
    """One request's way through the stages."""

    def __init__(self, stages: Sequence[str], floor: float) -> None:
        """`floor`: a draft that no gate accepted and whose probability is below it would be a guess."""
        self._stages = stages
        self._floor = floor
        self._position = 0
        self._accepted: Conclusion | None = None
        self._drafts: list[_Judged] = []
        self._failures: list[str] = []
        self._skipped: list[str] = []
        self._rejections = 0

    @property
    def next_stage(self) -> str | None:
        """The stage to run next; None when the cascade has ended."""
        if self._accepted is not None or self._position == len(self._stages):
            return None
        return self._stages[self._position]

    @property
    def unanswered(self) -> bool:
        """Whether nothing can be delivered so far."""
        return self._accepted is None and not self._drafts

    @property
    def accepted(self) -> bool:
        """Whether a gate took a draft."""
        return self._accepted is not None

    @property
    def at_last(self) -> bool:
        """Whether no stage is left after the next one."""
        return self._position == len(self._stages) - 1

    @property
    def drafts(self) -> tuple[str, ...]:
        """The texts that no gate accepted so far, in order."""
        return tuple(judged.draft.text for judged in self._drafts)

    @property
    def last_probability(self) -> float | None:
        """Of the last of them; None when there is none."""
        return self._drafts[-1].probability if self._drafts else None

    def take(self, draft: Draft, judgement: Judgement) -> Verdict:
        """Takes the draft of the stage that was next, and what its gate made of it."""
        judged = _Judged(self._leave(), draft, judgement.probability)
        if draft.empty:
            reason = "it read the passages and found no answer in them"
            if not judgement.accepted and self._position < len(self._stages):
                return Verdict(Decision.ESCALATED, judged.probability, f"{reason}; {judgement.reason}")
            self._accepted = Conclusion(AnswerStatus.NO_ANSWER)
            return Verdict(Decision.ACCEPTED, judged.probability, reason)
        if judgement.accepted:
            status = AnswerStatus.CONFIDENT if judgement.known else AnswerStatus.UNJUDGED
            self._accepted = Conclusion(status, judged.stage, draft, judged.probability)
            return Verdict(Decision.ACCEPTED, judged.probability, judgement.reason, judgement.known)
        self._drafts.append(judged)
        if self._position < len(self._stages):
            return Verdict(Decision.ESCALATED, judged.probability, judgement.reason, judgement.known)
        decision, outcome = self._at_the_end(judged)
        reason = f"{judgement.reason} and no stage is left: {outcome}"
        return Verdict(decision, judged.probability, reason, judgement.known)

    def skip(self, reason: str) -> Verdict:
        """Passes over the stage that was next."""
        self._skipped.append(f"{self._leave()}: {reason}")
        return Verdict(Decision.SKIPPED, 0.0, reason)

    def fail(self, reason: str, *, rejected: bool = False) -> Verdict:
        """Records that the stage that was next gave no draft; `rejected`: the request is at fault."""
        self._failures.append(f"{self._leave()}: {reason}")
        self._rejections += rejected
        return Verdict(Decision.FAILED, 0.0, reason)

    def extend(self, stages: Sequence[str]) -> None:
        """Goes on with further stages when those it has are used up."""
        self._stages = (*self._stages, *stages)

    def conclusion(self) -> Conclusion:
        """How it ended; to be asked when no stage is next.

        Raises:
            Rejected: no draft is good enough, and every further stage that was asked refused the request.
            Busy: no draft is good enough, and a stage that might have known better failed.
            Exhausted: no draft is good enough, and none that might have known better could be asked.
        """
        if self._accepted is not None:
            return self._accepted
        best = self._best() if self._drafts else None
        if best is None or best.probability < self._floor:
            # That the documents hold no answer could only be said if every stage had looked.
            if self._failures:
                if self._rejections == len(self._failures):
                    raise Rejected("REQUEST_REFUSED", f"no stage takes the request; {'; '.join(self._failures)}")
                raise Busy("CASCADE_FAILED", f"no stage gave an answer; {'; '.join(self._failures)}")
            if self._skipped:
                raise Exhausted("NO_STAGE_AFFORDABLE", f"no stage could be asked; {'; '.join(self._skipped)}")
            if best is None:
                return Conclusion(AnswerStatus.NO_ANSWER)
            return Conclusion(AnswerStatus.NO_ANSWER, best.stage, best.draft, best.probability)
        return Conclusion(AnswerStatus.BEST_EFFORT, best.stage, best.draft, best.probability)

    def _leave(self) -> str:
        stage = self.next_stage
        if stage is None:
            raise RuntimeError("the cascade has ended")
        self._position += 1
        return stage

    def _at_the_end(self, last: _Judged) -> tuple[Decision, str]:
        best = self._best()
        if best.probability < self._floor:
            return Decision.ESCALATED, f"below {self._floor:.2f} an answer would be a guess"
        if best is last:
            return Decision.ACCEPTED, "it is the best draft"
        return Decision.ESCALATED, f"the draft of {best.stage} is better"

    def _best(self) -> _Judged:
        """Of equally probable drafts the later stage's, whose model is the stronger."""
        return max(reversed(self._drafts), key=lambda judged: judged.probability)
