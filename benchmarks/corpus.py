"""SQuAD v1.1 dev (CC BY-SA 4.0) as documents and questions, and what counts as a right answer in it."""

import gzip
import json
import random
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = "squad.jsonl.gz"
"""One JSON a line: id, title, context, question, answers {text, answer_start}."""

_ARTICLES_FITTED_ON = 15
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class CannotMeasureError(Exception):
    """The figure could not be measured, or is wrong in a way that a figure must not hide."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document to put."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the paragraph it was asked about and the answers that count."""

    text: str
    title: str
    document: str
    """The name of the document that is its paragraph."""
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Paragraphs as documents of their own, by name, and the questions about them."""

    paragraphs: Mapping[str, str]
    titles: Mapping[str, str]
    """The title of each paragraph's article, by the paragraph's name."""
    questions: Sequence[Question]
    held_out: frozenset[str]
    """Titles of the articles that inference's weights and confidences were not fit on: half of them."""

    def documents(self) -> list[Document]:
        """One document a paragraph."""
        return [Document(name, text.encode()) for name, text in self.paragraphs.items()]

    def articles(self) -> list[Document]:
        """One Markdown document an article: its title as a heading, then its paragraphs."""
        texts: dict[str, list[str]] = {}
        for name, text in self.paragraphs.items():
            texts.setdefault(self.titles[name], []).append(text)
        return [
            Document(f"{title}.md", "\n\n".join((f"# {title.replace('_', ' ')}", *paragraphs)).encode())
            for title, paragraphs in texts.items()
        ]

    def sample(self, count: int, seed: int) -> list[Question]:
        """`count` of the questions, the same for the same `seed`."""
        return random.Random(seed).sample(self.questions, min(count, len(self.questions)))


def load(folder: Path, documents: int | None = None) -> Corpus:
    """Reads FILE in `folder`: its first `documents` paragraphs, or all, and the questions about those.

    Raises:
        CannotMeasureError: it is not there.
    """
    path = folder / FILE
    if not path.exists():
        raise CannotMeasureError(f"there is no {FILE} in {folder}: name the folder that holds it with --data")
    names: dict[str, str] = {}
    titles: dict[str, str] = {}
    questions = []
    every: set[str] = set()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            every.add(row["title"])
            name = names.get(row["context"])
            if name is None:
                if len(names) == documents:
                    continue
                name = names[row["context"]] = f"{len(names):04}.txt"
                titles[name] = row["title"]
            answers = tuple(dict.fromkeys(row["answers"]["text"]))
            questions.append(Question(row["question"], row["title"], name, answers))
    return Corpus({name: text for text, name in names.items()}, titles, questions, _held_out(every))


def _held_out(titles: Iterable[str]) -> frozenset[str]:
    shuffled = sorted(titles)
    random.Random(1).shuffle(shuffled)
    return frozenset(shuffled[_ARTICLES_FITTED_ON:])


def normalized(text: str) -> str:
    """As SQuAD's own evaluation compares answers: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def holds_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether `text` contains one of `answers` as whole words."""
    found = f" {normalized(text)} "
    return any(f" {wanted} " in found for answer in answers if (wanted := normalized(answer)))
