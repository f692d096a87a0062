"""Extraction."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.inference.extract import Candidate, candidates, ranked, short_answer
from tests.inference.samples import BRIDGE, EASY, MARKET, MUSEUM, hit


def _ranked(found: list[Candidate]) -> list[Candidate]:
    return ranked(found, np.array([1.0], dtype=np.float32), np.zeros((len(found), 1), dtype=np.float32))


def test_best_sentence_shares_the_question_words_and_kind() -> None:
    """The sentence with the rare words and a year comes before its neighbours."""
    best = candidates(EASY, [MUSEUM, BRIDGE, MARKET], limit=5)[0]
    assert best.text == "It was built in 1844 by the engineer Anna Frei."


def test_only_the_limit_is_kept() -> None:
    """What is embedded is bounded, whatever is found."""
    assert len(candidates(EASY, [BRIDGE, MUSEUM, MARKET], limit=2)) == 2


def test_meaning_can_overrule_words() -> None:
    """A sentence that is near in meaning passes one that shares a few more words."""
    found = candidates("What do tickets cost?", [MUSEUM], limit=3)
    vectors = np.array([[1.0] if c.text.startswith("The museum") else [-1.0] for c in found], dtype=np.float32)
    assert ranked(found, np.array([1.0], dtype=np.float32), vectors)[0].text == "The museum shows paintings."


def test_headings_are_no_answers() -> None:
    """A heading or a single word repeats the question and answers nothing."""
    found = candidates("opening hours", [hit(1, "# Opening hours\nOpening. We open at nine.")], limit=5)
    assert [c.text for c in found] == ["We open at nine."]


def test_citation_points_into_the_document() -> None:
    """Offsets are those of the document's text, and the quote is what stands there."""
    passage = hit(4, "One bridge stands here. Two mills stand there.", start_char=100)
    _, citations = short_answer(_ranked(candidates("two", [passage], limit=1)), 1, 50)
    assert (citations[0].start_char, citations[0].end_char, citations[0].quote) == (124, 146, "Two mills stand there.")


def test_sentences_of_one_passage_stand_in_its_order() -> None:
    """However they rank, they read as they were written."""
    found = _ranked(candidates("engineer people walk bridge river", [BRIDGE], limit=3))
    text, citations = short_answer(found, 3, 70)
    assert [c.start_char for c in citations] == sorted(c.start_char for c in citations)
    assert text.startswith("The Old Bridge crosses the river Aare. [1] It was built")


def test_answer_stays_within_its_words() -> None:
    """Sentences that do not fit are left out; the best is in regardless."""
    found = _ranked(candidates(EASY, [BRIDGE, MUSEUM], limit=6))
    text, citations = short_answer(found, 3, 3)
    assert len(citations) == 1
    assert text.endswith("Anna Frei. [1]")


def test_a_repeated_sentence_is_said_once() -> None:
    """Two documents that say the same add nothing to each other."""
    twice = [hit(1, "Refunds take thirty days."), hit(2, "Refunds take thirty days."), hit(3, "Shops close at six.")]
    text, _ = short_answer(_ranked(candidates("How long do refunds take?", twice, limit=9)), 3, 70)
    assert text.count("Refunds") == 1


@given(st.text(), st.lists(st.text(), max_size=4))
def test_any_text_can_be_ranked(question: str, texts: list[str]) -> None:
    """No question and no passage breaks it, and every quote stands in its passage."""
    hits = [hit(number, text) for number, text in enumerate(texts, start=1)]
    found = _ranked(candidates(question, hits, limit=8))
    if found:
        _, citations = short_answer(found, 3, 70)
        assert all(c.quote == c.passage.chunk.text[c.start_char : c.end_char] for c in citations)
