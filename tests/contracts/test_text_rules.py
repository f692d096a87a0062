"""What callers write is text that somebody can read."""

import protovalidate
import pytest
from google.protobuf.message import Message
from headwater.inference.v1 import inference_pb2
from headwater.ingest.v1 import ingest_pb2
from headwater.retrieval.v1 import retrieval_pb2

BLANK = " \t\n"


@pytest.mark.parametrize(
    "message",
    [
        inference_pb2.GenerateRequest(question=BLANK),
        inference_pb2.GenerateStreamRequest(question=BLANK),
        retrieval_pb2.SearchRequest(query=BLANK),
        ingest_pb2.DocumentHeader(name="   "),
        ingest_pb2.DocumentHeader(name="a\x00b"),
        ingest_pb2.DocumentHeader(name="a\x1b[31mb"),
        ingest_pb2.DocumentHeader(name="a\nb"),
    ],
    ids=repr,
)
def test_blanks_and_control_characters_are_refused(message: Message) -> None:
    """A citation shows the name, a log or a terminal may, and nobody answers a blank."""
    with pytest.raises(protovalidate.ValidationError):
        protovalidate.validate(message)


@pytest.mark.parametrize("name", ["a", " Übersicht 2026.pdf", "政策.md"])
def test_names_of_any_language_are_taken(name: str) -> None:
    """Also with spaces."""
    protovalidate.validate(ingest_pb2.DocumentHeader(name=name))
