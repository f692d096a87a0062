"""Requests nobody should send, generated from the protos: hostile values, broken bytes, wrong credentials."""

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_TEXTS = (
    "",
    " ",
    "\x00",
    "*",
    ">",
    "a.b.c",
    "../../../etc/passwd",
    "'; DROP TABLE headwater.usage_events; --",
    "{{7*7}}",
    "𝕳\u202e\ufeff",  # noqa: RUF001 - hostile on purpose
    "a" * 129,
    "ü" * 5000,
    "NaN",
    "-0.000000000001",
    "1e400",
    "null",
    '{"type": {"$ref": "#"}}',
    "[" * 3000,
    "2026-13-45T99:99:99Z",
)
_INTEGERS = (0, 1, -1, 7, 2**31 - 1, -(2**31))
_LONGS = (*_INTEGERS, 2**63 - 1, -(2**63), 253402300800, -62135596801)
_FLOATS = (0.0, -0.0, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 0.5)
_DEEPEST = 4


def requests(method: MethodDescriptor, dice: random.Random) -> Iterator[bytes]:
    """Endless serialized requests of `method`: well-formed with hostile values, and some of them broken."""
    make = GetMessageClass(method.input_type)
    while True:
        message = make()
        _fill(message, dice, 0)
        data = message.SerializeToString()
        match dice.randrange(4):
            case 0 if data:
                cut = dice.randrange(len(data))
                yield data[:cut]
            case 1 if data:
                flipped = bytearray(data)
                for _ in range(dice.randint(1, 8)):
                    flipped[dice.randrange(len(flipped))] = dice.randrange(256)
                yield bytes(flipped)
            case 2 if dice.random() < 0.2:
                yield dice.randbytes(dice.randint(1, 400))
            case _:
                yield data


def _fill(message: Message, dice: random.Random, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.4:
            continue
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if depth < _DEEPEST:
                _fill_message(message, field, dice, depth)
        elif field.is_repeated:
            getattr(message, field.name).extend(_value(field, dice) for _ in range(dice.choice((1, 2, 300))))
        else:
            setattr(message, field.name, _value(field, dice))


def _fill_message(message: Message, field: Any, dice: random.Random, depth: int) -> None:
    value = getattr(message, field.name)
    if field.message_type.GetOptions().map_entry:
        for _ in range(dice.choice((1, 40))):
            value[dice.choice(_TEXTS)] = dice.choice(_TEXTS)
    elif field.is_repeated:
        for _ in range(dice.choice((1, 2, 20))):
            _fill(value.add(), dice, depth + 1)
    else:
        value.SetInParent()
        _fill(value, dice, depth + 1)


def _value(field: Any, dice: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = dice.choice(_TEXTS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return dice.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return dice.choice(_FLOATS)
        case FieldDescriptor.CPPTYPE_INT64:
            return dice.choice(_LONGS)
        case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
            return dice.choice((0, 1, 2**32 - 1))
        case _:
            return dice.choice(_INTEGERS)
