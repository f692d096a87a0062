"""Terms."""

import pytest

from services.inference.terms import AnswerKind, TermWeights, adjacent, answer_kind, holds_kind, terms


def test_inflected_words_meet() -> None:
    """Words that differ by a common suffix are one term."""
    assert terms("plays played playing") == ["play", "play", "play"]


def test_meaningless_words_are_left_out() -> None:
    """Articles and question words tell sentences apart no better than chance."""
    assert terms("What is the Bridge?") == ["bridg"]


def test_scripts_without_spaces_count_characters() -> None:
    """A Chinese phrase is not one word."""
    assert terms("桥建于1844年") == ["桥", "建", "于", "1844", "年"]


def test_rare_terms_weigh_more() -> None:
    """Covering the rare term of a question covers more of it than covering the common one."""
    weights = TermWeights([["common", "rare"], ["common"], ["common"]])
    wanted = frozenset({"common", "rare"})
    assert weights.coverage(wanted, frozenset({"rare"})) > 0.5 > weights.coverage(wanted, frozenset({"common"}))


def test_nothing_wanted_is_not_covered() -> None:
    """A question without terms covers nothing rather than everything."""
    assert TermWeights([]).coverage(frozenset(), frozenset({"a"})) == 0


def test_neighbours_count_as_neighbours_only() -> None:
    """Both words apart are no adjacent pair."""
    assert adjacent(["old", "bridge"], ["old", "bridge"]) == 1
    assert adjacent(["old", "bridge"], ["old", "stone", "bridge"]) == 0


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("When was it built?", AnswerKind.TIME),
        ("In what year did it open?", AnswerKind.TIME),
        ("How many rooms are there?", AnswerKind.NUMBER),
        ("Who built it?", AnswerKind.NAME),
        ("Which city is it in?", AnswerKind.NAME),
        ("Why did it fall?", AnswerKind.UNKNOWN),
    ],
)
def test_question_words_tell_the_kind(question: str, kind: AnswerKind) -> None:
    """The question's own words say what it asks for."""
    assert answer_kind(question) is kind


def test_a_number_of_the_question_is_no_answer() -> None:
    """What the question says already does not answer it."""
    assert holds_kind(AnswerKind.TIME, "When after 1844 did it open?", "It closed in 1844.") == -1
    assert holds_kind(AnswerKind.TIME, "When after 1844 did it open?", "It opened in 1850.") == 1
