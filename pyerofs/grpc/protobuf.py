"""Protocol Buffers (protobuf.dev, "Encoding") by hand: a message is a dict, its schema a value.

    MOUNT = Message(type=(1, STRING), options=(4, [STRING]))
    MOUNT.decode(MOUNT.encode({"type": "erofs"})) == {"type": "erofs", "options": []}

A field that is absent has its default: "" or 0, [] for a repeated one, {} for a map, None for a message. What a schema
does not know is skipped; what is malformed is a ProtobufError, whatever it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK = (1 << 64) - 1


class ProtobufError(ValueError):
    """Bytes that are no message of the schema."""


@dataclass(frozen=True, slots=True)
class Scalar:
    name: str
    wire: int
    default: Any


STRING = Scalar("string", _BYTES, "")
BYTES = Scalar("bytes", _BYTES, b"")
INT = Scalar("int", _VARINT, 0)  # int32, int64 and enums
UINT = Scalar("uint", _VARINT, 0)
BOOL = Scalar("bool", _VARINT, False)


class Map(NamedTuple):
    """A map of strings to what `value` says."""

    value: Scalar = STRING


class _Field(NamedTuple):
    name: str
    kind: Scalar | Message | Map
    repeated: bool


class Message:
    """A schema: each field's number and kind by its name. A kind is a scalar, a Message, a Map, or one in a list."""

    def __init__(self, **fields: tuple[int, Any]) -> None:
        self._fields: dict[int, _Field] = {}
        self._numbers: dict[str, int] = {}
        for name, (number, kind) in fields.items():
            repeated = isinstance(kind, list)
            self._fields[number] = _Field(name, kind[0] if repeated else kind, repeated)
            self._numbers[name] = number

    def defaults(self) -> dict[str, Any]:
        """Return the message that no bytes stand for."""
        return {field.name: _default(field) for field in self._fields.values()}

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """Return the bytes of a message. Fields at their default are left out, those that are not named too."""
        out = bytearray()
        for name, value in values.items():
            number = self._numbers[name]
            field = self._fields[number]
            if field.repeated:
                for each in value:
                    _write(out, number, field.kind, each)
            elif isinstance(field.kind, Map):
                entry = _entry(field.kind)
                for key, each in value.items():
                    _write(out, number, entry, {"key": key, "value": each})
            elif value is not None and (isinstance(field.kind, Message) or value != field.kind.default):
                _write(out, number, field.kind, value)
        return bytes(out)

    def decode(self, data: bytes | memoryview) -> dict[str, Any]:
        """Return the message that the bytes are. Raises ProtobufError."""
        values = self.defaults()
        view = memoryview(data)
        at = 0
        while at < len(view):
            key, at = _varint(view, at)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise ProtobufError("a field has the number 0")
            raw, at = _raw(view, at, wire)
            field = self._fields.get(number)
            if field is not None:
                _take(values, field, wire, raw)
        return values


def _default(field: _Field) -> Any:
    if field.repeated:
        return []
    if isinstance(field.kind, Map):
        return {}
    return None if isinstance(field.kind, Message) else field.kind.default


def _entry(kind: Map) -> Message:
    return Message(key=(1, STRING), value=(2, kind.value))


def _take(values: dict[str, Any], field: _Field, wire: int, raw: int | memoryview) -> None:
    """Put a field that has come into the message."""
    kind = field.kind
    if isinstance(kind, Map):
        entry = _entry(kind).decode(_of_bytes(field, raw))
        values[field.name][entry["key"]] = entry["value"]
    elif isinstance(kind, Message):
        value = kind.decode(_of_bytes(field, raw))
        if field.repeated:
            values[field.name].append(value)
        else:
            values[field.name] = value
    elif field.repeated and kind.wire == _VARINT and wire == _BYTES:  # packed
        packed = _of_bytes(field, raw)
        at = 0
        while at < len(packed):
            number, at = _varint(packed, at)
            values[field.name].append(_scalar(field, kind, _VARINT, number))
    elif field.repeated:
        values[field.name].append(_scalar(field, kind, wire, raw))
    else:
        values[field.name] = _scalar(field, kind, wire, raw)


def _of_bytes(field: _Field, raw: int | memoryview) -> memoryview:
    if isinstance(raw, int):
        raise ProtobufError(f"{field.name} is a number")
    return raw


def _scalar(field: _Field, kind: Scalar, wire: int, raw: int | memoryview) -> Any:
    if wire != kind.wire:
        raise ProtobufError(f"{field.name} is no {kind.name}")
    if isinstance(raw, int):
        if kind is BOOL:
            return raw != 0
        return raw - (1 << 64) if kind is INT and raw >> 63 else raw
    data = bytes(raw)
    if kind is BYTES:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProtobufError(f"{field.name} is not UTF-8") from None


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it."""
    value = shift = 0
    while True:
        if at >= len(view):
            raise ProtobufError("it ends in the middle of a number")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
        if shift >= 70:
            raise ProtobufError("a number has more than ten bytes")


def _raw(view: memoryview, at: int, wire: int) -> tuple[int | memoryview, int]:
    """Return a field's value as it lies there, and the place behind it."""
    if wire == _VARINT:
        return _varint(view, at)
    if wire == _BYTES:
        length, at = _varint(view, at)
    elif wire in (_FIXED64, _FIXED32):
        length = 8 if wire == _FIXED64 else 4
    else:
        raise ProtobufError(f"a field has the wire type {wire}")
    if length > len(view) - at:
        raise ProtobufError("it ends in the middle of a field")
    return view[at : at + length], at + length


def _write(out: bytearray, number: int, kind: Scalar | Message | Map, value: Any) -> None:
    if isinstance(kind, Scalar) and kind.wire == _VARINT:
        _write_varint(out, number << 3)
        _write_varint(out, int(value) & _MASK)
        return
    if isinstance(kind, Message):
        data = kind.encode(value)
    else:
        data = value.encode() if isinstance(value, str) else bytes(value)
    _write_varint(out, number << 3 | _BYTES)
    _write_varint(out, len(data))
    out += data


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


TIMESTAMP = Message(seconds=(1, INT), nanos=(2, INT))  # google.protobuf.Timestamp
ANY = Message(type_url=(1, STRING), value=(2, BYTES))  # google.protobuf.Any
EMPTY = Message()  # google.protobuf.Empty
FIELD_MASK = Message(paths=(1, [STRING]))  # google.protobuf.FieldMask
