"""Extraction: answers made of sentences that stand in the passages, so none can be invented.

A sentence's score is a weighted sum of cheap signals. The weights were fit on SQuAD v1.1 dev (CC BY-SA 4.0), on the
questions of 15 of its 30 articles in our half of it: listwise softmax over all sentences of the five passages found
first, L-BFGS with an L2 penalty of 0.001; a sentence is right when it holds a gold answer. The passage's rank, its
neighbouring sentences, the sentence's place and share of new words were tried and did not help on the other 15
articles; the sentence's length was in the fit, got a weight of 0.1 and was dropped, and the rest rounded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.inference.drafts import Citation
from services.inference.terms import TermWeights, adjacent, answer_kind, holds_kind, terms
from services.knowledge.passages import Hit, Vector
from services.knowledge.sentences import sentence_spans

_WEIGHT_COSINE = 5.6
_WEIGHT_COVERAGE = 5.6
_WEIGHT_SIMILARITY = 3.7
_WEIGHT_PASSAGE_COVERAGE = 3.1
_WEIGHT_KIND = 1.0
_WEIGHT_ADJACENT = 1.2

_SAID_ALREADY = 0.8
"""A sentence that shares more of its terms with one already in the answer adds nothing."""
_HEADING = re.compile(r"#{1,6} ")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence that may answer the question."""

    hit: Hit
    start: int
    """In the passage's text."""
    end: int
    """Exclusive."""
    terms: frozenset[str]
    coverage: float
    """Which part of the weight of the question's terms it holds, 0 to 1."""
    kind: float
    """1: it holds what the question asks for (a name, a number, a time); -1: it does not; 0: unknown."""
    score: float
    """Comparable between the sentences of one question."""
    cosine: float = 0.0
    """Of question and sentence; 0 until it is embedded."""

    @property
    def text(self) -> str:
        """The sentence."""
        return self.hit.passage.chunk.text[self.start : self.end]


def candidates(question: str, hits: Sequence[Hit], limit: int) -> list[Candidate]:
    """The `limit` sentences of `hits` that promise most by their words alone, best first."""
    spans = [(hit, *sentence) for hit in hits for sentence in _sentences(hit.passage.chunk.text)]
    weights = TermWeights(found for *_, found in spans)
    wanted = terms(question)
    asked = frozenset(wanted)
    kind = answer_kind(question)
    passage_coverage = {
        hit.id: weights.coverage(asked, frozenset(terms(hit.passage.chunk.embedded_text))) for hit in hits
    }
    found = []
    for hit, start, end, words in spans:
        text = hit.passage.chunk.text[start:end]
        own = frozenset(words)
        coverage = weights.coverage(asked, own)
        holds = holds_kind(kind, question, text)
        score = (
            _WEIGHT_COVERAGE * coverage
            + _WEIGHT_SIMILARITY * hit.similarity
            + _WEIGHT_PASSAGE_COVERAGE * passage_coverage[hit.id]
            + _WEIGHT_KIND * holds
            + _WEIGHT_ADJACENT * adjacent(wanted, words)
        )
        found.append(Candidate(hit, start, end, own, coverage, holds, score))
    return sorted(found, key=lambda candidate: -candidate.score)[:limit]


def ranked(found: Sequence[Candidate], question: Vector, sentences: Vector) -> list[Candidate]:
    """`found` by words and meaning, best first.

    Args:
        found: the candidates that were embedded.
        question: of unit length, shape (dimension,).
        sentences: theirs, in their order; shape (candidates, dimension), rows of unit length.
    """
    cosines = np.asarray(sentences @ question, dtype=float)
    scored = [
        Candidate(c.hit, c.start, c.end, c.terms, c.coverage, c.kind, c.score + _WEIGHT_COSINE * cosine, cosine)
        for c, cosine in zip(found, cosines.tolist(), strict=True)
    ]
    return sorted(scored, key=lambda candidate: -candidate.score)


def short_answer(found: Sequence[Candidate], max_sentences: int, max_words: int) -> tuple[str, tuple[Citation, ...]]:
    """The best of `found` that fit, as a text with markers, and what the markers stand for.

    The best one is always in, however long. Sentences of one passage stand together in its order; passages stand in
    the order of their best sentence.

    Args:
        found: best first, not empty.
        max_sentences: most sentences to take.
        max_words: most words of all together.
    """
    chosen: list[Candidate] = []
    words = 0
    for candidate in found:
        length = len(candidate.text.split())
        if len(chosen) == max_sentences:
            break
        if chosen and (words + length > max_words or _said_already(candidate, chosen)):
            continue
        chosen.append(candidate)
        words += length
    best_first = {c.hit.id: -position for position, c in reversed(list(enumerate(chosen)))}
    in_order = sorted(chosen, key=lambda c: (-best_first[c.hit.id], c.start))
    citations = tuple(_citation(number, candidate) for number, candidate in enumerate(in_order, start=1))
    text = " ".join(f"{' '.join(c.text.split())} [{number}]" for number, c in enumerate(in_order, start=1))
    return text, citations


def _sentences(text: str) -> list[tuple[int, int, list[str]]]:
    """Where each sentence starts and ends, and its terms.

    Headings and single words repeat the question and answer nothing: they count only where there is nothing else.
    """
    spans = [(start, end, terms(text[start:end])) for start, end in sentence_spans(text)]
    return [span for span in spans if len(span[2]) > 1 and not _HEADING.match(text, span[0])] or spans


def _said_already(candidate: Candidate, chosen: Sequence[Candidate]) -> bool:
    return any(len(candidate.terms & other.terms) > _SAID_ALREADY * len(candidate.terms) for other in chosen)


def _citation(number: int, candidate: Candidate) -> Citation:
    passage = candidate.hit.passage
    return Citation(
        number=number,
        passage=passage,
        start_char=passage.chunk.start_char + candidate.start,
        end_char=passage.chunk.start_char + candidate.end,
        quote=candidate.text,
    )
