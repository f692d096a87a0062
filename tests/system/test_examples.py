"""Our example tenants: what they ask is answered from their own documents and nobody else's."""

import tomllib
from pathlib import Path
from typing import Any

import grpc
import pytest
from headwater.inference.v1 import inference_pb2
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceStub
from headwater.ingest.v1 import ingest_pb2
from headwater.retrieval.v1 import retrieval_pb2
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

from tests.system.conftest import Platform, put, settled

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTIONS: list[dict[str, Any]] = tomllib.loads((EXAMPLES / "questions.toml").read_text())["questions"]


@pytest.mark.parametrize("tenant", ["acme", "globex"])
async def test_questions_are_answered_from_the_tenants_own_documents(
    platform: Platform, channel: grpc.aio.Channel, tenant: str
) -> None:
    """Of the direct questions nine in ten are answered right; no answer, passage or citation holds another's fact."""
    key = platform.tenant(f"example-{tenant}")
    files = sorted(file for file in (EXAMPLES / tenant).iterdir())
    accepted = [await put(channel, key, file.name, file.read_bytes()) for file in files]
    for response in accepted:
        document = await settled(channel, key, response.document.document_id)
        assert document.state == ingest_pb2.DOCUMENT_STATE_INDEXED, document.failure_reason
    right: list[bool] = []
    for question in (q for q in QUESTIONS if q["tenant"] == tenant):
        answer, passages = await _asked(channel, key, question["question"])
        for leak in question["leak"]:
            assert leak not in f"{answer} {passages}", f"{leak!r} is not {tenant}'s"
        assert {citation.document_name for citation in answer.citations} <= {file.name for file in files}
        if question["kind"] == "direct":
            right.append(all(expected in answer.text for expected in question["expected"]))
    assert sum(right) >= 0.9 * len(right)


async def _asked(channel: grpc.aio.Channel, key: Any, question: str) -> tuple[inference_pb2.Answer, str]:
    generated = await InferenceServiceStub(channel).Generate(
        inference_pb2.GenerateRequest(question=question), metadata=key, timeout=30
    )
    found = await RetrievalServiceStub(channel).Search(
        retrieval_pb2.SearchRequest(query=question), metadata=key, timeout=30
    )
    return generated.answer, " ".join(passage.text for passage in found.passages)
