"""What is kept of a tar layer that was read once: its entries, and where their contents lie on its data device.

With that the layer can be put under any others without being read again. As bytes: a line of JSON that says how much
there is, then columns of little-endian numbers, then names, link targets, xattrs and small contents. It is for this
machine's cache only: what is read there again is compared with a hash first, and has no stranger's numbers in it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from array import array
from collections.abc import Iterator
from typing import Any

from ..errors import ImageError
from ..tar.reader import TarEntry
from .data_map import DataMap, Extent

VERSION = 1  # of the bytes, and of the layout that they tell of: what another version has made is made again
_COLUMNS = (
    *("kind:B", "mode:H", "uid:I", "gid:I", "seconds:q", "nanoseconds:I", "size:Q", "content:I", "device:Q"),
    *("names:H", "links:H", "xattrs:I"),
)
_EXTENT = struct.Struct("<IQQQ")
_ROWS = 1024


class LayerTable:
    """The entries of one layer in the order of its archive. For one thread.

    `device_size`: bytes of its data device. `facts`: what else is to be known of the layer, for JSON.
    """

    def __init__(self) -> None:
        self._columns = {name: array(code) for name, code in (column.split(":") for column in _COLUMNS)}
        self._rows: list[tuple[int, ...]] = []
        self._names = bytearray()
        self._links = bytearray()
        self._xattrs: list[tuple[tuple[bytes, bytes], ...]] = [()]
        self._xattr_numbers: dict[tuple[tuple[bytes, bytes], ...], int] = {(): 0}
        self.contents = _Contents()
        self.device_size = 0
        self.facts: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._columns["kind"]) + len(self._rows)

    def add(self, entry: TarEntry, content: int) -> None:
        """Add an entry; `content`: of a file, its number in `contents`. Raises ImageError for too long a name."""
        if max(len(entry.name), len(entry.link)) > 0xFFFF:
            raise ImageError(f"the entry {entry} of the layer: its name or target has more than {0xFFFF} bytes")
        seconds, nanoseconds = divmod(entry.mtime, 1_000_000_000)
        number = 0
        if entry.xattrs:
            xattrs = tuple(sorted(entry.xattrs.items()))
            number = self._xattr_numbers.setdefault(xattrs, len(self._xattrs))
            if number == len(self._xattrs):
                self._xattrs.append(xattrs)
        major, minor = entry.device
        self._rows.append(
            (
                *(entry.kind[0], entry.mode, entry.uid, entry.gid, seconds, nanoseconds, entry.size, content),
                *(major << 32 | minor, len(entry.name), len(entry.link), number),
            )
        )
        self._names += entry.name
        self._links += entry.link
        if len(self._rows) == _ROWS:
            self._settle()

    def _settle(self) -> None:
        """Put the rows that have come into the columns: many at once, which takes a third of the time."""
        for column, values in zip(self._columns.values(), zip(*self._rows, strict=True), strict=False):
            column.extend(values)
        self._rows.clear()

    def entries(self, contents: DataMap, device: int, shift: int = 0) -> Iterator[tuple[TarEntry, int]]:
        """Yield the entries, with the numbers of their contents in another data map.

        There they lie on `device`, `shift` bytes behind where they lie on the layer's own.
        """
        self._settle()
        numbers = self.contents.put_into(contents, device, shift)
        names, links = memoryview(self._names), memoryview(self._links)
        sets = [dict(xattrs) for xattrs in self._xattrs]
        name_at = link_at = 0
        for kind, mode, uid, gid, seconds, nanoseconds, size, content, node, name, link, xattrs in zip(
            *self._columns.values(), strict=True
        ):
            yield (
                TarEntry(
                    bytes(names[name_at : name_at + name]),
                    bytes((kind,)),
                    mode,
                    uid,
                    gid,
                    seconds * 1_000_000_000 + nanoseconds,
                    size,
                    bytes(links[link_at : link_at + link]),
                    (node >> 32, node & 0xFFFFFFFF),
                    sets[xattrs],
                ),
                numbers[content],
            )
            name_at += name
            link_at += link

    def names(self) -> Iterator[bytes]:
        """Yield the names of all entries, as the archive has them."""
        at = 0
        for length in self._columns["names"]:
            yield bytes(self._names[at : at + length])
            at += length

    def to_bytes(self) -> bytes:
        """Return the table in its stored form, its SHA-256 last."""
        self._settle()
        parts = [_little(column) for column in self._columns.values()]
        parts += [bytes(self._names), bytes(self._links), _xattr_bytes(self._xattrs), *self.contents.to_parts()]
        head = {"version": VERSION, "device_size": self.device_size, "facts": self.facts}
        body = json.dumps({**head, "parts": [len(part) for part in parts]}).encode() + b"\n" + b"".join(parts)
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> LayerTable:
        """Read what to_bytes() gave. Raises ValueError for anything else, also of another version."""
        body, digest = memoryview(data)[:-32], data[-32:]
        if len(data) < 32 or hashlib.sha256(body).digest() != digest:
            raise ValueError("the layer's table is damaged")
        line = data.index(b"\n")
        head = json.loads(data[:line])
        if head["version"] != VERSION:
            raise ValueError("the layer's table is of another version")
        found = cls()
        parts = []
        at = line + 1
        for length in head["parts"]:
            parts.append(bytes(body[at : at + length]))
            at += length
        count = len(found._columns)
        for column, part in zip(found._columns.values(), parts, strict=False):
            column.frombytes(part)
            _swap(column)
        found._names, found._links = bytearray(parts[count]), bytearray(parts[count + 1])
        found._xattrs = _xattrs_of(parts[count + 2])
        found._xattr_numbers = {xattrs: number for number, xattrs in enumerate(found._xattrs)}
        found.contents = _Contents.from_parts(parts[count + 3 :])
        found.device_size = head["device_size"]
        found.facts = head["facts"]
        return found


class _Contents(DataMap):
    """A data map of one device, 0, that remembers the digests of its contents by number."""

    __slots__ = ("digests",)

    def __init__(self) -> None:
        super().__init__()
        self.digests: list[bytes] = [b""]

    def add(self, device: int, start: int, digest: bytes) -> int:
        self.digests.append(digest)
        return super().add(device, start, digest)

    def put_into(self, other: DataMap, device: int, shift: int) -> list[int]:
        """Add all contents to another data map, `shift` bytes further; return their numbers there, equal ones once."""
        numbers = [0]
        for number in range(1, len(self.digests)):
            digest = self.digests[number]
            known = other.find(device, digest) if digest else None
            if known is None:
                if number in self.inline:
                    known = other.add_inline(device, self.inline[number])
                elif number in self.extents:
                    pieces = (piece._replace(start=piece.start + shift) for piece in self.extents[number])
                    known = other.add_extents(device, tuple(pieces), digest)
                else:
                    known = other.add(device, self.starts[number] + shift, digest)
            numbers.append(known)
        return numbers

    def to_parts(self) -> list[bytes]:
        extents = b"".join(
            _EXTENT.pack(number, *extent) for number, pieces in self.extents.items() for extent in pieces
        )
        inline = b"".join(struct.pack("<II", number, len(data)) + data for number, data in self.inline.items())
        digests = b"".join(bytes((len(digest),)) + digest for digest in self.digests)
        return [_little(self.starts), extents, inline, digests]

    @classmethod
    def from_parts(cls, parts: list[bytes]) -> _Contents:
        starts, extents, inline, digests = parts
        found = cls()
        column = array("Q")
        column.frombytes(starts)
        _swap(column)
        pieces: dict[int, list[Extent]] = {}
        for number, *extent in _EXTENT.iter_unpack(extents):
            pieces.setdefault(number, []).append(Extent(*extent))
        small: dict[int, bytes] = {}
        at = 0
        while at < len(inline):
            number, length = struct.unpack_from("<II", inline, at)
            small[number] = inline[at + 8 : at + 8 + length]
            at += 8 + length
        at = 1 + digests[0]
        for number in range(1, len(column)):
            digest = digests[at + 1 : at + 1 + digests[at]]
            at += 1 + len(digest)
            if number in small:
                found.add_inline(0, small[number])
            elif number in pieces:
                found.add_extents(0, tuple(pieces[number]), digest)
            else:
                found.add(0, column[number], digest)
        return found


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _swap(column: array[int]) -> None:
    if sys.byteorder == "big":
        column.byteswap()


def _xattr_bytes(sets: list[tuple[tuple[bytes, bytes], ...]]) -> bytes:
    found = bytearray()
    for xattrs in sets:
        found += struct.pack("<I", len(xattrs))
        for name, value in xattrs:
            found += struct.pack("<II", len(name), len(value)) + name + value
    return bytes(found)


def _xattrs_of(data: bytes) -> list[tuple[tuple[bytes, bytes], ...]]:
    sets = []
    at = 0
    while at < len(data):
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
        found = []
        for _ in range(count):
            name, value = struct.unpack_from("<II", data, at)
            at += 8
            found.append((data[at : at + name], data[at + name : at + name + value]))
            at += name + value
        sets.append(tuple(found))
    return sets
