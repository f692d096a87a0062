"""proto/buf/validate is a faithful part of the schema that the installed protovalidate enforces."""

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor
from protovalidate._gen.buf.validate import validate_pb

OURS = validate_pb2.DESCRIPTOR


def _theirs(message: str) -> dict[str, int]:
    return {field.name: field.number for field in getattr(validate_pb, message).desc().proto.field}


@pytest.mark.parametrize("message", list(OURS.message_types_by_name.values()), ids=lambda message: message.name)
def test_fields_have_the_librarys_names_and_numbers(message: Descriptor) -> None:
    """A rule we write under a wrong number would be silently ignored."""
    ours: dict[str, int] = {field.name: field.number for field in message.fields}
    theirs = _theirs(message.name)
    assert ours.items() <= theirs.items()


def test_extensions_have_the_librarys_number() -> None:
    """Options are found under protovalidate's extension number."""
    assert {extension.number for extension in OURS.extensions_by_name.values()} == {1159}
