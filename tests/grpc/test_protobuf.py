"""Protobuf by hand: what goes in comes out, and what is malformed is one error."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pyerofs.grpc.protobuf import BOOL, BYTES, INT, STRING, TIMESTAMP, UINT, Map, Message, ProtobufError

INNER = Message(name=(1, STRING), when=(2, TIMESTAMP))
OUTER = Message(
    text=(1, STRING), data=(2, BYTES), number=(3, INT), count=(4, UINT), flag=(5, BOOL), inner=(6, INNER),
    texts=(7, [STRING]), numbers=(8, [INT]), inners=(9, [INNER]), labels=(16, Map()),
)  # fmt: skip
INT64 = some.integers(-(1 << 63), (1 << 63) - 1)
INNERS = some.fixed_dictionaries(
    {"name": some.text(), "when": some.none() | some.fixed_dictionaries({"seconds": INT64, "nanos": INT64})}
)
OUTERS = some.fixed_dictionaries(
    {
        "text": some.text(),
        "data": some.binary(),
        "number": INT64,
        "count": some.integers(0, (1 << 64) - 1),
        "flag": some.booleans(),
        "inner": some.none() | INNERS,
        "texts": some.lists(some.text()),
        "numbers": some.lists(INT64),
        "inners": some.lists(INNERS),
        "labels": some.dictionaries(some.text(), some.text()),
    }
)


@given(OUTERS)
def test_a_message_comes_back_as_it_was(values: dict[str, Any]) -> None:
    assert OUTER.decode(OUTER.encode(values)) == values


def test_a_message_is_the_same_bytes_as_protoc_s() -> None:
    """From the documentation ("Encoding"), and python-protobuf's."""
    assert Message(a=(1, INT)).encode({"a": 150}) == bytes.fromhex("089601")
    assert Message(b=(2, STRING)).encode({"b": "testing"}) == bytes.fromhex("120774657374696e67")
    assert Message(c=(3, Message(a=(1, INT)))).encode({"c": {"a": 150}}) == bytes.fromhex("1a03089601")
    assert Message(d=(1, INT)).encode({"d": -2}) == bytes.fromhex("08feffffffffffffffff01")
    assert Message(e=(7, Map())).encode({"e": {"k": "v"}}) == bytes.fromhex("3a060a016b120176")


def test_packed_numbers_are_understood() -> None:
    assert Message(f=(6, [INT])).decode(bytes.fromhex("3206038e029ea705")) == {"f": [3, 270, 86942]}


def test_what_is_not_known_is_skipped() -> None:
    """Fields of newer versions, of every wire type."""
    data = bytes.fromhex("f80101fd0101020304f9010102030405060708fa01036162630a0178")
    assert Message(text=(1, STRING)).decode(data) == {"text": "x"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("0a", "in the middle of a number"),
        ("0a0561", "in the middle of a field"),
        ("0a01ff", "text is not UTF-8"),
        ("0801", "text is no string"),
        ("1a00", "number is no int"),
        ("3001", "inner is a number"),
        ("0b", "wire type 3"),
        ("0001", "number 0"),
        ("18ffffffffffffffffffffff01", "more than ten bytes"),
        ("3202120a", "in the middle of a field"),
        ("0d01020304", "text is no string"),
    ],
)
def test_what_is_malformed_is_an_error(data: str, why: str) -> None:
    with pytest.raises(ProtobufError, match=why):
        OUTER.decode(bytes.fromhex(data))


@given(some.binary())
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ProtobufError):
        OUTER.decode(data)


@given(OUTERS, some.data())
def test_a_damaged_message_is_a_message_or_an_error(values: dict[str, Any], data: some.DataObject) -> None:
    encoded = bytearray(OUTER.encode(values))
    for place in data.draw(some.lists(some.integers(0, max(0, len(encoded) - 1)), max_size=4)) if encoded else ():
        encoded[place] = data.draw(some.integers(0, 255))
    with contextlib.suppress(ProtobufError):
        OUTER.decode(bytes(encoded))
