"""Broken rules are told in words."""

from collections.abc import Iterator
from typing import Any

import protovalidate
import pytest
from buf.validate import validate_pb2
from google.protobuf.message import Message
from headwater.auth.v1 import auth_pb2
from headwater.inference.v1 import inference_pb2, policies_pb2
from headwater.ingest.v1 import ingest_pb2
from headwater.metering.v1 import metering_pb2, prices_pb2, reports_pb2, tenants_pb2, webhooks_pb2
from headwater.retrieval.v1 import retrieval_pb2

from services.runtime.rule_words import PATTERNS
from services.runtime.status import of_violations

MODULES: tuple[Any, ...] = (
    inference_pb2,
    policies_pb2,
    ingest_pb2,
    metering_pb2,
    prices_pb2,
    reports_pb2,
    tenants_pb2,
    webhooks_pb2,
    retrieval_pb2,
)


def _patterns() -> Iterator[str]:
    """Of every field of every message, of its items too."""
    for module in MODULES:
        for message in module.DESCRIPTOR.message_types_by_name.values():
            for field in message.fields:
                rules = field.GetOptions().Extensions[validate_pb2.field]
                for strings in (rules.string, rules.repeated.items.string, rules.map.keys.string):
                    if strings.pattern:
                        yield strings.pattern


def test_every_pattern_has_words() -> None:
    """And no words are left of a pattern that is gone."""
    assert set(_patterns()) == set(PATTERNS)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            ingest_pb2.PutDocumentRequest(header=ingest_pb2.DocumentHeader(name="a\tb")),
            "header.name: must be one line of any characters but control characters such as tabs, and more than spaces",
        ),
        (
            ingest_pb2.ListDeadLettersRequest(page_token="x"),
            "page_token: send the next_page_token of the previous page",
        ),
        (
            tenants_pb2.IssueKeyRequest(scopes=[auth_pb2.SCOPE_UNSPECIFIED]),
            "scopes: must be one of the defined values other than unspecified",
        ),
        (tenants_pb2.ListKeysRequest(page_size=-1), "page_size: must be greater than or equal to 0"),
    ],
)
def test_a_request_that_breaks_a_rule_is_told_what_to_send(request_: Message, sentence: str) -> None:
    """No pattern and no number of an enum's value, which mean nothing to whoever reads it."""
    with pytest.raises(protovalidate.ValidationError) as raised:
        protovalidate.validate(request_)
    assert of_violations(raised.value).message.startswith(sentence)
