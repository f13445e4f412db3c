"""FlatBuffers, as far as a zTOC needs them: tables of numbers, strings and vectors, read and written.

flatbuffers.dev, "FlatBuffer Internals". A table is a row of fields, each at an offset that a vtable shared by many
tables has, or missing there. What is read comes from a stranger: every offset is checked, and TocError is all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .model import TocError

OFFSET = "o"  # a field that points to a string, a vector or another table; others have a code of struct
Fields = tuple[str, ...]

_HEAD = 4  # bytes before a table's fields: where its vtable is
_ROWS_MAX = 64  # vtables that are remembered; a buffer has a few


class _Row(NamedTuple):
    """What unpacks tables with one vtable; which value each field is; which fields point, and their offsets."""

    row: struct.Struct
    order: tuple[int | None, ...]
    pointers: tuple[tuple[int, int], ...]


class FlatBuffer:
    """A buffer that is read. Every method raises TocError where it points outside itself."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._rows: dict[tuple[int, Fields], _Row] = {}

    def root(self) -> int:
        """Return the place of the root table."""
        return self._number("<I", 0)

    def table(self, place: int, fields: Fields) -> list[int]:
        """Return the fields of a table, 0 for those that are missing; of an OFFSET the place to which it points."""
        row, order, pointers = self._row(place - self._number("<i", place), fields)
        if place + row.size > len(self._data):
            raise _broken()
        values = row.unpack_from(self._data, place)
        found = [0 if at is None else values[at] for at in order]
        for number, offset in pointers:
            found[number] += place + offset
        return found

    def _row(self, vtable: int, fields: Fields) -> _Row:
        known = self._rows.get((vtable, fields))
        if known is None:
            if len(self._rows) == _ROWS_MAX:
                self._rows.clear()
            length = self._number("<H", vtable) // 2 - 2
            if length < 0:
                raise _broken()
            offsets = self._unpack(f"<{min(length, len(fields))}H", vtable + 4)
            known = self._rows[vtable, fields] = _make_row(offsets, fields)
        return known

    def string(self, place: int) -> bytes:
        """Return the bytes of a string, or of a vector of bytes, whose number stands in front."""
        length = self._number("<I", place)
        end = place + 4 + length
        if end > len(self._data):
            raise _broken()
        return self._data[place + 4 : end]

    def pointed(self, place: int) -> Iterator[int]:
        """Yield the places to which the offsets in a vector point."""
        count = self.count(place)
        if place + 4 + 4 * count > len(self._data):
            raise _broken()
        for at in range(place + 4, place + 4 + 4 * count, 4):
            yield at + self._number("<I", at)

    def count(self, place: int) -> int:
        """Return how many entries a vector has."""
        return self._number("<I", place)

    def _number(self, code: str, place: int) -> int:
        found: int = self._unpack(code, place)[0]
        return found

    def _unpack(self, code: str, place: int) -> tuple[Any, ...]:
        if place < 0:  # struct counts from the end then
            raise _broken()
        try:
            return struct.unpack_from(code, self._data, place)
        except struct.error:
            raise _broken() from None


def _make_row(offsets: Sequence[int], fields: Fields) -> _Row:
    text, end = "<", 0
    order: list[int | None] = [None] * len(fields)
    pointers = []
    for position, (offset, number) in enumerate(sorted((at, number) for number, at in enumerate(offsets) if at)):
        if offset < max(end, _HEAD):
            raise _broken()
        code = _code(fields[number])
        text += f"{offset - end}x{code}"
        end = offset + struct.calcsize(f"<{code}")
        order[number] = position
        if fields[number] == OFFSET:
            pointers.append((number, offset))
    return _Row(struct.Struct(text), tuple(order), tuple(pointers))


def _code(field: str) -> str:
    return "I" if field == OFFSET else field


def _broken() -> TocError:
    return TocError("it is no zTOC, or a damaged one")


class TableForm(NamedTuple):
    """How tables of one kind are written: their vtable's `place`, and their fields, in the `order` of the `row`."""

    place: int
    row: struct.Struct
    order: tuple[int, ...]
    offsets: tuple[int, ...]


class FlatWriter:
    """A buffer that is written from its beginning to its end: tables first, what they point to behind them.

    The same calls give the same bytes. Equal strings are written once, at the end.
    """

    def __init__(self) -> None:
        self._data = bytearray(4)
        self._strings: dict[bytes, list[int]] = {}  # and where the offsets to them stand

    def form(self, fields: Fields) -> TableForm:
        """Write the vtable of tables that have all of these fields, the long ones first; return how to write these."""
        sizes = [struct.calcsize(f"<{_code(field)}") for field in fields]
        order = sorted(range(len(fields)), key=lambda number: -sizes[number])
        offsets, text, end = [0] * len(fields), "<i", _HEAD
        for number in order:
            padding = -end % sizes[number]
            text += f"{padding}x{_code(fields[number])}"
            offsets[number] = end + padding
            end += padding + sizes[number]
        place = self._align(2)
        self._data += struct.pack(f"<{2 + len(fields)}H", 4 + 2 * len(fields), end, *offsets)
        return TableForm(place, struct.Struct(text), tuple(order), tuple(offsets))

    def table(self, form: TableForm, values: Sequence[int]) -> tuple[int, list[int]]:
        """Write a table; return its place and those of its fields: of an OFFSET for point() or string()."""
        place = self._align(8)
        self._data += form.row.pack(place - form.place, *[values[number] for number in form.order])
        return place, [place + offset for offset in form.offsets]

    def vector(self, count: int) -> tuple[int, range]:
        """Write a vector of offsets; return its place and those of its entries."""
        place = self._align(4)
        self._data += struct.pack("<I", count) + bytes(4 * count)
        return place, range(place + 4, place + 4 + 4 * count, 4)

    def bytes_vector(self, data: bytes) -> int:
        """Write a vector of bytes; return its place."""
        place = self._align(4)
        self._data += struct.pack("<I", len(data)) + data
        return place

    def point(self, field: int, place: int) -> None:
        """Let an offset point to what has been written behind it."""
        struct.pack_into("<I", self._data, field, place - field)

    def string(self, field: int, text: bytes) -> None:
        """Let an offset point to a string."""
        self._strings.setdefault(text, []).append(field)

    def finish(self, root: int) -> bytes:
        """Return the buffer, whose root table is at `root`."""
        self.point(0, root)
        for text, fields in self._strings.items():
            place = self.bytes_vector(text)
            self._data += b"\0"
            for field in fields:
                self.point(field, place)
        self._align(8)
        return bytes(self._data)

    def _align(self, size: int) -> int:
        self._data += bytes(-len(self._data) % size)
        return len(self._data)
