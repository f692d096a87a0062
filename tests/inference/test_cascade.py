"""The cascade's state machine."""

import pytest

from services.contracts.failures import Busy, Exhausted, Rejected
from services.inference.cascade import AnswerStatus, Cascade, Conclusion, Decision, Verdict
from services.inference.drafts import Draft
from services.inference.policies.gates import judge
from services.inference.policies.schema import Gate

STAGES = ("small", "large")
THRESHOLDS = {"small": 0.7, "large": 0.6}
SURE, UNSURE, GUESS = (Draft("sure"), 0.9), (Draft("unsure"), 0.5), (Draft("guess"), 0.1)


def _cascade() -> Cascade:
    return Cascade(STAGES, floor=0.3)


def _take(cascade: Cascade, draft: Draft, confidence: float) -> Verdict:
    """Has the next stage's gate judge the draft by its stage's own confidence."""
    gate = Gate(threshold=THRESHOLDS[cascade.next_stage or ""])
    return cascade.take(draft, judge(gate, {"confidence": confidence}))


def test_a_confident_draft_ends_it() -> None:
    """The next stage is not asked."""
    cascade = _cascade()
    verdict = _take(cascade, *SURE)
    assert (verdict.decision, verdict.reason) == (Decision.ACCEPTED, "confidence 0.90 reaches 0.70")
    assert cascade.next_stage is None
    assert cascade.conclusion().status is AnswerStatus.CONFIDENT


def test_a_draft_below_its_gate_escalates_and_says_why() -> None:
    """The reason names both numbers."""
    cascade = _cascade()
    verdict = _take(cascade, Draft("unsure"), 0.43)
    assert (verdict.decision, verdict.reason) == (Decision.ESCALATED, "confidence 0.43 is below 0.70")
    assert cascade.next_stage == STAGES[1]
    assert cascade.at_last


def test_a_confidence_on_the_threshold_is_accepted() -> None:
    """The gate asks for at least its threshold."""
    assert _take(_cascade(), Draft("just"), 0.7).decision is Decision.ACCEPTED


def test_without_an_accepted_draft_the_best_is_the_answer() -> None:
    """It keeps its own stage and confidence, and is marked."""
    cascade = _cascade()
    _take(cascade, *UNSURE)
    last = _take(cascade, Draft("worse"), 0.4)
    assert (last.decision, last.reason) == (
        Decision.ESCALATED,
        "confidence 0.40 is below 0.60 and no stage is left: the draft of small is better",
    )
    conclusion = cascade.conclusion()
    assert (conclusion.status, conclusion.stage, conclusion.draft) == (AnswerStatus.BEST_EFFORT, "small", UNSURE[0])


def test_of_equal_drafts_the_later_wins() -> None:
    """Its model is the stronger."""
    cascade = _cascade()
    _take(cascade, *UNSURE)
    assert _take(cascade, Draft("other"), 0.5).decision is Decision.ACCEPTED
    assert cascade.conclusion().stage == "large"


def test_a_failed_last_stage_falls_back_on_the_draft_before() -> None:
    """The failure is that stage's reason."""
    cascade = _cascade()
    _take(cascade, *UNSURE)
    verdict = cascade.fail("the provider answered 503")
    assert (verdict.decision, verdict.reason) == (Decision.FAILED, "the provider answered 503")
    assert cascade.conclusion().stage == "small"


def test_a_failed_stage_hands_on_to_the_next() -> None:
    """A broken small model does not break the request."""
    cascade = _cascade()
    cascade.fail("no embedder")
    _take(cascade, *SURE)
    assert cascade.conclusion().stage == "large"


def test_nothing_but_guesses_is_no_answer() -> None:
    """Below the floor an answer would be made up."""
    cascade = _cascade()
    _take(cascade, *GUESS)
    assert "would be a guess" in _take(cascade, *GUESS).reason
    assert cascade.conclusion().status is AnswerStatus.NO_ANSWER


def test_a_model_that_finds_nothing_is_believed() -> None:
    """An empty draft ends the cascade with no answer, whatever the stage before said."""
    cascade = _cascade()
    _take(cascade, *UNSURE)
    assert _take(cascade, Draft(""), 0.8).decision is Decision.ACCEPTED
    assert cascade.conclusion().status is AnswerStatus.NO_ANSWER


def test_when_every_stage_fails_the_request_does() -> None:
    """Each stage's failure is told."""
    cascade = _cascade()
    cascade.fail("no embedder")
    cascade.fail("answered 503")
    with pytest.raises(Busy, match=r"small: no embedder; large: answered 503"):
        cascade.conclusion()


def test_without_stages_there_is_no_answer() -> None:
    """Nothing found means nothing to ask a model about."""
    assert Cascade((), floor=0.3).conclusion().status is AnswerStatus.NO_ANSWER


def test_a_skipped_stage_hands_on_and_tells_why() -> None:
    """Where no stage could be asked, the reasons are the failure."""
    cascade = _cascade()
    verdict = cascade.skip("no room")
    assert (verdict.decision, cascade.next_stage) == (Decision.SKIPPED, "large")
    cascade.skip("no room either")
    with pytest.raises(Exhausted, match="small: no room; large: no room either"):
        cascade.conclusion()


def test_nothing_found_by_a_stage_that_is_not_trusted_escalates() -> None:
    """A small model that says there is no answer has not ended the matter, unless its gate believes it."""
    cascade = _cascade()
    assert _take(cascade, Draft(""), 0.2).decision is Decision.ESCALATED
    assert cascade.next_stage == "large"
    assert _take(cascade, Draft(""), 0.0).decision is Decision.ACCEPTED
    assert cascade.conclusion().status is AnswerStatus.NO_ANSWER


def test_a_request_that_every_stage_refuses_is_at_fault() -> None:
    """Trying again would not help, and the caller is told so."""
    cascade = _cascade()
    cascade.fail("the provider answered 400", rejected=True)
    cascade.fail("the provider answered 400", rejected=True)
    with pytest.raises(Rejected, match="no stage takes the request"):
        cascade.conclusion()


def test_guesses_are_no_answer_only_when_every_stage_has_looked() -> None:
    """A provider that is away does not mean that the documents hold nothing."""
    cascade = _cascade()
    _take(cascade, *GUESS)
    cascade.fail("the provider cannot be reached")
    with pytest.raises(Busy) as raised:
        cascade.conclusion()
    assert raised.value.reason == "CASCADE_FAILED"
    assert "large: the provider cannot be reached" in raised.value.message


def test_no_answer_comes_with_the_best_guess() -> None:
    """Whoever wants to know how far off it was can."""
    cascade = _cascade()
    _take(cascade, *GUESS)
    _take(cascade, Draft("worse"), 0.05)
    assert cascade.conclusion() == Conclusion(AnswerStatus.NO_ANSWER, "small", *GUESS)


def test_a_draft_that_nothing_judges_is_not_called_confident() -> None:
    """No confidence is made up for a model that nobody has calibrated."""
    cascade = Cascade(("large",), floor=0.3)
    verdict = cascade.take(Draft("text"), judge(Gate(threshold=0), {}))
    assert (verdict.decision, verdict.known, verdict.probability) == (Decision.ACCEPTED, False, 0.0)
    assert "nothing tells how good it is" in verdict.reason
    assert cascade.conclusion().status is AnswerStatus.UNJUDGED
