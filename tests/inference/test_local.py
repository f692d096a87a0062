"""The local stages."""

import asyncio

import pytest

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy
from services.inference.drafts import Draft, Tab, Task
from services.inference.local import ExtractStage, extract_1, extract_20
from services.inference.settings import InferenceSettings
from services.knowledge.embedder import Priority
from tests.inference.samples import BRIDGE, EASY, MARKET, MUSEUM, BagEmbedder, hit, to_answer

SETTINGS = InferenceSettings()
TASK = to_answer(EASY, BRIDGE, MUSEUM, MARKET)


async def _draft(stage: ExtractStage, task: Task, tab: Tab) -> Draft:
    (draft,) = [piece async for piece in stage.draft(task, tab)]
    assert isinstance(draft, Draft)
    return draft


async def test_extract_1_answers_with_one_sentence() -> None:
    """The best sentence of the best passage, cited."""
    draft = await _draft(extract_1(SETTINGS.extract_1, BagEmbedder()), TASK, Tab())
    assert draft.text == "It was built in 1844 by the engineer Anna Frei. [1]"
    assert [c.passage.document_id for c in draft.citations] == ["doc-1"]


async def test_extract_20_answers_with_a_few() -> None:
    """A short answer from several sentences, each cited."""
    draft = await _draft(extract_20(SETTINGS.extract_20, BagEmbedder()), TASK, Tab())
    assert len(draft.citations) == 3
    assert "1844" in draft.text


async def test_a_question_the_passages_do_not_touch_gets_low_confidence() -> None:
    """Nothing in common means nothing to be sure of."""
    stage = extract_1(SETTINGS.extract_1, BagEmbedder())
    off_topic = await _draft(stage, to_answer("Who discovered penicillin?", MUSEUM, MARKET), Tab())
    on_topic = await _draft(stage, TASK, Tab())
    assert off_topic.confidence < SETTINGS.answer_floor < SETTINGS.extract_1.threshold < on_topic.confidence


async def test_one_bounded_call_serves_the_waiting_first() -> None:
    """Sentences go together, no more than the settings allow, before documents; the question was embedded already."""
    embedder = BagEmbedder()
    many = tuple(hit(n, f"Bridge number {n} is old. It is {n} metres long.") for n in range(1, 40))
    await _draft(extract_20(SETTINGS.extract_20, embedder), to_answer(EASY, *many), Tab())
    (call,) = embedder.calls
    assert EASY not in call
    assert len(call) == SETTINGS.extract_20.embedded_sentences
    assert embedder.priorities == [Priority.QUESTION]


async def test_what_was_embedded_is_on_the_tab() -> None:
    """Tokens of the sentences, as the model counts them."""
    embedder, tab = BagEmbedder(), Tab()
    await _draft(extract_1(SETTINGS.extract_1, embedder), TASK, tab)
    tokens = sum(len(text.split()) for text in embedder.calls[0])
    assert (tab.tokens, tab.estimated) == (TokenUsage(uncached_input=tokens), False)


async def test_a_refused_call_costs_nothing() -> None:
    """A full queue did no work."""
    embedder, tab = BagEmbedder(), Tab()
    embedder.away = True
    with pytest.raises(Busy):
        await _draft(extract_1(SETTINGS.extract_1, embedder), TASK, tab)
    assert tab.tokens is None


async def test_an_abandoned_call_is_estimated() -> None:
    """The model goes on when the caller leaves; somebody pays."""
    embedder, tab = BagEmbedder(), Tab()
    embedder.gate.clear()
    task = asyncio.create_task(_draft(extract_1(SETTINGS.extract_1, embedder), TASK, tab))
    await embedder.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tab.estimated
    assert tab.tokens is not None
    assert tab.tokens.uncached_input > 0


async def test_passages_without_words_hold_no_answer() -> None:
    """There is nothing to embed and nothing to say."""
    embedder = BagEmbedder()
    draft = await _draft(extract_1(SETTINGS.extract_1, embedder), to_answer(EASY, hit(1, " \n ")), Tab())
    assert (draft.text, embedder.calls) == ("", [])
