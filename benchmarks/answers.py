"""Answers of the local stages, each alone and together as they come: how many hold a gold answer, and how fast.

A stage is alone when its threshold is 0 and that of the stage before it is 1. The platform is started anew on the same
data folder for each, so every figure but the first one's also shows that a restart keeps documents and keys.
"""

import asyncio
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import monotonic

from headwater.inference.v1 import inference_pb2

from benchmarks import corpus
from benchmarks.corpus import CannotMeasureError, Question, holds_answer
from benchmarks.platform import Tenant, running
from benchmarks.report import Figure, arguments, measured, progress, quantile
from services.inference.settings import InferenceSettings

EXTRACT_1, EXTRACT_20 = "local/extract-1", "local/extract-20"
TENANT = "bench"
_MARKER = re.compile(r"\s*\[\d+\]")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and what came of it."""

    question: Question
    answer: inference_pb2.Answer
    ms: float

    @property
    def right(self) -> bool:
        """Whether the answer holds a gold answer."""
        return holds_answer(_words(self.answer), self.question.answers)


async def answers(data: Path, documents: int | None, questions: int, seed: int) -> list[Figure]:
    """Measures extract-1 alone, extract-20 alone and the cascade."""
    loaded = corpus.load(data, documents)
    asked = loaded.sample(questions, seed)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        data_dir = Path(folder) / "data"
        async with running(data_dir) as platform:
            await (await platform.tenant(TENANT)).put(loaded.documents())
        for stage, settings, share, p50 in (
            (EXTRACT_1, _thresholds(0, 1), "≥ 60 %", "≤ 100 ms"),
            (EXTRACT_20, _thresholds(1, 0), "clearly more", "≤ 600 ms"),
        ):
            async with running(data_dir, settings) as platform:
                found = await _ask(await platform.tenant(TENANT), asked, f"{stage} alone")
            if other := {one.answer.stage for one in found} - {stage}:
                raise CannotMeasureError(f"{stage} was to answer alone, and {', '.join(other)} did too")
            figures += _alone(stage, found, loaded.held_out, share, p50)
        async with running(data_dir) as platform:
            figures += _together(await _ask(await platform.tenant(TENANT), asked, "the cascade"))
    return figures


def _thresholds(extract_1: float, extract_20: float) -> dict[str, str]:
    defaults = InferenceSettings()
    return {
        "HEADWATER_INFERENCE__EXTRACT_1": defaults.extract_1.model_copy(
            update={"threshold": extract_1}
        ).model_dump_json(),
        "HEADWATER_INFERENCE__EXTRACT_20": defaults.extract_20.model_copy(
            update={"threshold": extract_20}
        ).model_dump_json(),
        "HEADWATER_INFERENCE__ANSWER_FLOOR": "0",
    }


async def _ask(tenant: Tenant, questions: Sequence[Question], what: str) -> list[Asked]:
    """One at a time."""
    for question in questions[:5]:
        await tenant.ask(question.text)
    found = []
    for question in questions:
        started = monotonic()
        answer = await tenant.ask(question.text)
        found.append(Asked(question, answer, (monotonic() - started) * 1000))
        if len(found) % 250 == 0:
            progress(f"{what}: {len(found)} questions, {mean(one.right for one in found):.1%} hold a gold answer")
    return found


def _alone(stage: str, found: Sequence[Asked], held_out: frozenset[str], share: str, p50: str) -> list[Figure]:
    unseen = [one for one in found if one.question.title in held_out]
    return [
        Figure(
            f"{stage} alone: answers that hold a gold answer",
            f"{mean(one.right for one in found):.1%}",
            share,
            f"{_share(unseen)} of the {len(unseen)} about articles that nothing was fit on",
        ),
        Figure(f"{stage} alone: words an answer", f"{mean(len(_words(one.answer).split()) for one in found):.0f}"),
        Figure(f"{stage} alone: p50, one at a time", f"{quantile([one.ms for one in found], 0.5):.0f} ms", p50),
        Figure(f"{stage} alone: p95, one at a time", f"{quantile([one.ms for one in found], 0.95):.0f} ms"),
    ]


def _together(found: Sequence[Asked]) -> list[Figure]:
    confident = inference_pb2.ANSWER_STATUS_CONFIDENT
    groups = {
        f"stop at {stage}": [one for one in found if one.answer.stage == stage and one.answer.status == confident]
        for stage in (EXTRACT_1, EXTRACT_20)
    }
    groups["end as a best effort"] = [
        one for one in found if one.answer.status == inference_pb2.ANSWER_STATUS_BEST_EFFORT
    ]
    figures = [
        Figure(
            f"cascade: questions that {name}", f"{len(some) / len(found):.1%}", "", f"{_share(some)} of those are right"
        )
        for name, some in groups.items()
    ]
    unanswered = sum(one.answer.status == inference_pb2.ANSWER_STATUS_NO_ANSWER for one in found)
    return [
        *figures,
        Figure("cascade: questions without an answer", f"{unanswered / len(found):.1%}"),
        Figure("cascade: answers that hold a gold answer", f"{mean(one.right for one in found):.1%}"),
        Figure("cascade: p50, one at a time", f"{quantile([one.ms for one in found], 0.5):.0f} ms"),
        Figure("cascade: p95, one at a time", f"{quantile([one.ms for one in found], 0.95):.0f} ms"),
    ]


def _share(some: Sequence[Asked]) -> str:
    return f"{mean(one.right for one in some):.1%}" if some else "none"


def _words(answer: inference_pb2.Answer) -> str:
    """The answer without its markers."""
    return _MARKER.sub("", answer.text)


def main() -> int:
    """The command."""
    parser = arguments("answers", __doc__ or "", "--data ~/squad --questions 300")
    parser.add_argument("--documents", type=int, help="paragraphs to put; unset puts all")
    parser.add_argument("--questions", type=int, default=1000, help="questions to ask each stage (1000)")
    parser.add_argument("--seed", type=int, default=7, help="which questions (7)")
    chosen = parser.parse_args()
    return measured(
        "Answers",
        chosen.json,
        lambda: asyncio.run(answers(chosen.data, chosen.documents, chosen.questions, chosen.seed)),
    )


if __name__ == "__main__":
    sys.exit(main())
