"""The local stages."""

import asyncio

import pytest

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy
from services.inference.confidence import BEST_SENTENCE, SHORT_ANSWER
from services.inference.drafts import Draft, Task
from services.inference.local import ExtractStage
from services.inference.settings import InferenceSettings
from services.knowledge.embedder import Priority
from tests.inference.samples import BRIDGE, EASY, MARKET, MUSEUM, BagEmbedder, OpenMeter, hit, to_answer

SETTINGS = InferenceSettings()
TASK = to_answer(EASY, BRIDGE, MUSEUM, MARKET)


def extract_1(embedder: BagEmbedder) -> ExtractStage:
    return ExtractStage("local/extract-1", "local/extract-1", SETTINGS.extract_1, BEST_SENTENCE, embedder)


def extract_20(embedder: BagEmbedder) -> ExtractStage:
    return ExtractStage("theirs", "local/extract-20", SETTINGS.extract_20, SHORT_ANSWER, embedder)


async def _draft(stage: ExtractStage, task: Task, meter: OpenMeter) -> Draft:
    (draft,) = [piece async for piece in stage.draft(task, meter)]
    assert isinstance(draft, Draft)
    return draft


async def test_extract_1_answers_with_one_sentence() -> None:
    """The best sentence of the best passage, cited."""
    draft = await _draft(extract_1(BagEmbedder()), TASK, OpenMeter())
    assert draft.text == "It was built in 1844 by the engineer Anna Frei. [1]"
    assert [c.passage.document_id for c in draft.citations] == ["doc-1"]


async def test_extract_20_answers_with_a_few() -> None:
    """A short answer from several sentences, each cited."""
    draft = await _draft(extract_20(BagEmbedder()), TASK, OpenMeter())
    assert len(draft.citations) == 3
    assert "1844" in draft.text


async def test_a_question_the_passages_do_not_touch_gets_low_confidence() -> None:
    """Nothing in common means nothing to be sure of."""
    stage = extract_1(BagEmbedder())
    off_topic = await _draft(stage, to_answer("Who discovered penicillin?", MUSEUM, MARKET), OpenMeter())
    on_topic = await _draft(stage, TASK, OpenMeter())
    assert off_topic.confidence is not None
    assert on_topic.confidence is not None
    assert off_topic.confidence < SETTINGS.answer_floor < SETTINGS.extract_1.threshold < on_topic.confidence


async def test_one_bounded_call_serves_the_waiting_first() -> None:
    """Sentences go together, no more than the settings allow, before documents; the question was embedded already."""
    embedder = BagEmbedder()
    many = tuple(hit(n, f"Bridge number {n} is old. It is {n} metres long.") for n in range(1, 40))
    await _draft(extract_20(embedder), to_answer(EASY, *many), OpenMeter())
    (call,) = embedder.calls
    assert EASY not in call
    assert len(call) == SETTINGS.extract_20.embedded_sentences
    assert embedder.priorities == [Priority.QUESTION]


async def test_what_was_embedded_is_on_the_tab() -> None:
    """Tokens of the sentences, as the model counts them."""
    embedder, meter = BagEmbedder(), OpenMeter()
    await _draft(extract_1(embedder), TASK, meter)
    tokens = sum(len(text.split()) for text in embedder.calls[0])
    (tab,) = meter.tabs
    assert (tab.tokens, tab.estimated) == (TokenUsage(uncached_input=tokens), False)


async def test_a_stage_is_priced_as_itself() -> None:
    """Apart from other embeddings, and whatever a policy calls it."""
    stage, meter = extract_20(BagEmbedder()), OpenMeter()
    await _draft(stage, TASK, meter)
    (called,) = meter.calls
    assert called == stage.worst(TASK)
    assert (called[:2], stage.name) == (("local", "extract-20"), "theirs")


async def test_a_refused_call_costs_nothing() -> None:
    """A full queue did no work."""
    embedder, meter = BagEmbedder(), OpenMeter()
    embedder.away = True
    with pytest.raises(Busy):
        await _draft(extract_1(embedder), TASK, meter)
    assert [tab.tokens for tab in meter.tabs] == [None]


async def test_an_abandoned_call_is_estimated() -> None:
    """The model goes on when the caller leaves; somebody pays."""
    embedder, meter = BagEmbedder(), OpenMeter()
    embedder.gate.clear()
    task = asyncio.create_task(_draft(extract_1(embedder), TASK, meter))
    await embedder.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (tab,) = meter.tabs
    assert tab.estimated
    assert tab.tokens is not None
    assert tab.tokens.uncached_input > 0


async def test_passages_without_words_hold_no_answer() -> None:
    """There is nothing to embed and nothing to say."""
    embedder = BagEmbedder()
    draft = await _draft(extract_1(embedder), to_answer(EASY, hit(1, " \n ")), OpenMeter())
    assert (draft.text, embedder.calls) == ("", [])
