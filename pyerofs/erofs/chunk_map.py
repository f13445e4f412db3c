"""The chunk map of a tar layer: where the bytes of its data device lie in its blob, and by what they are checked.

The device is a virtual one: the contents of the layer's files, each from a block of its own on, in the order of the
blob. What no piece covers is zeros, which are never fetched. As bytes: a header, then columns of this machine's own
numbers, 8-byte ones first, which are used where they lie, in a mapped file. It is for this machine's cache only.

A map fixes every byte of its device: its pieces, or its units, have a SHA-256 each. So the device goes by the digest of
the map, and whoever names that gets these bytes or none.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple, cast

from ..errors import ImageError
from ..tar.toc.model import DIGEST_SIZE, UNIT_MAX, Codec, Units

if TYPE_CHECKING:
    from collections.abc import Sequence
    from mmap import mmap

_MAGIC = b"pyerofs chunks 2"
# Magic, codec, digest of what, size, prefix, hot ranges, units, pieces, window bytes.
_HEADER = struct.Struct("=16sBB6xQQQQQQ")
_CODECS: tuple[Codec, ...] = ("none", "gzip", "zstd", "span")
_BEGINS = 1 << 31  # in a piece's length: it is the first of its file
_GZIP_HEAD = 1 << 10  # bytes of a gzip member's header, and more


class MapUnit(NamedTuple):
    """Blob bytes [offset, offset + stored), of which the first `plain` that they inflate to are wanted."""

    offset: int
    stored: int
    plain: int


class MapPiece(NamedTuple):
    """Device bytes [start, start + length): the plain bytes of `unit` from `offset` on. `begins`: a file begins."""

    start: int
    length: int
    unit: int
    offset: int
    begins: bool

    @property
    def end(self) -> int:
        return self.start + self.length


class ChunkMap:
    """A map that is used where it lies. Any thread. Raises ValueError for what is none."""

    def __init__(self, data: mmap | bytes) -> None:
        if len(data) < _HEADER.size or data[:16] != _MAGIC:
            raise ValueError("it is not a chunk map of this version")
        _, codec, stored_digests, size, prefix, hot, units, pieces, windows = _HEADER.unpack_from(data)
        self.codec = _CODECS[codec]
        self.stored_digests = bool(stored_digests)  # the units have digests of what is stored, and the pieces none
        self.size = size  # bytes of the device
        self.prefix = prefix  # bytes that the image wants to be there at once; 0: it says nothing
        spans = self.codec == "span"
        self._view = memoryview(data)
        self._at = _HEADER.size
        self._offsets = self._column("Q", units)
        self._starts = self._column("Q", pieces)
        self._window_ends = self._column("Q", units if spans else 0)
        ranges = self._column("Q", 2 * hot)
        # Offsets and lengths of the device that the image wants to be there at once, the most urgent first.
        self.hot = tuple((ranges[at], ranges[at + 1]) for at in range(0, 2 * hot, 2))
        self._stored = self._column("I", units)
        self._plain = self._column("I", units)
        self._lengths = self._column("I", pieces)
        self._units = self._column("I", pieces)
        self._inner = self._column("I", pieces)
        self._bits = self._column("B", units if spans else 0)
        self._digests = self._column("B", DIGEST_SIZE * (units if self.stored_digests else pieces))
        self._windows = self._column("B", windows)
        self.pieces = pieces  # how many there are
        self.units = units
        if self._at != len(data):
            raise ValueError("it has another size than it says")

    def _column(self, code: str, count: int) -> memoryview[int]:
        end = self._at + count * struct.calcsize(f"={code}")
        if end > len(self._view):
            raise ValueError("it is cut short")
        found = self._view[self._at : end].cast(code)  # type: ignore[call-overload]  # any code
        self._at = end
        return cast("memoryview[int]", found)

    def unit(self, number: int) -> MapUnit:
        return MapUnit(self._offsets[number], self._stored[number], self._plain[number])

    def checkpoint(self, number: int) -> tuple[int, bytes]:
        """Return bits and packed window of a span."""
        first = self._window_ends[number - 1] if number else 0
        return self._bits[number], bytes(self._windows[first : self._window_ends[number]])

    def piece(self, number: int) -> MapPiece:
        length = self._lengths[number]
        return MapPiece(
            self._starts[number],
            length & ~_BEGINS,
            self._units[number],
            self._inner[number],
            bool(length & _BEGINS),
        )

    def find(self, position: int) -> int:
        """Return the number of the first piece that ends behind `position`; `pieces` where there is none."""
        found = bisect_right(self._starts, position) - 1
        if found >= 0 and self._starts[found] + (self._lengths[found] & ~_BEGINS) > position:
            return found
        return found + 1

    def of_unit(self, number: int) -> range:
        """Return the numbers of the pieces that lie in a unit."""
        return range(bisect_left(self._units, number), bisect_right(self._units, number))

    def stretch(self, pieces: range) -> tuple[int, int]:
        """Return the device bytes that are known with these pieces: with the zeros before and behind them."""
        first, end = 0, self.size
        if pieces.start:
            first = self.piece(pieces.start - 1).end
        if pieces.stop < self.pieces:
            end = self._starts[pieces.stop]
        return first, end

    def position(self, offset: int) -> int:
        """Return how much of the device is there when the first `offset` bytes of the blob are."""
        unit = bisect_right(self._offsets, offset) - 1
        if unit >= 0 and self._offsets[unit] + self._stored[unit] <= offset:
            unit += 1
        first = bisect_left(self._units, max(0, unit))
        return self._starts[first] if first < self.pieces else self.size

    def check_stored(self, unit: int, data: bytes) -> None:
        """Raise ImageError unless `data` is the unit as it is stored; without a digest only the length is compared."""
        if len(data) != self._stored[unit]:
            raise ImageError(f"the part at {self._offsets[unit]} has {len(data)} bytes instead of {self._stored[unit]}")
        if self.stored_digests and hashlib.sha256(data).digest() != self._digest(unit):
            raise ImageError(f"the part at {self._offsets[unit]} is corrupt: its hash is not the one in the table")

    def check_piece(self, number: int, data: bytes | memoryview) -> None:
        """Raise ImageError unless `data` is the piece; without a digest nothing is compared."""
        if not self.stored_digests and hashlib.sha256(data).digest() != self._digest(number):
            offset = self._offsets[self._units[number]]
            raise ImageError(f"the part at {offset} is corrupt: its hash is not the one in the table")

    def _digest(self, number: int) -> bytes:
        return bytes(self._digests[DIGEST_SIZE * number : DIGEST_SIZE * (number + 1)])


class MapPieces:
    """The pieces of a map that is being made, in the order of the device. For one thread."""

    def __init__(self) -> None:
        self.starts, self.lengths = array("Q"), array("I")
        self.units, self.inner = array("I"), array("I")
        self.digests = bytearray()

    def add(self, start: int, length: int, unit: int, offset: int, digest: bytes, *, begins: bool) -> None:
        """Add the next one, as MapPiece has it."""
        self.starts.append(start)
        self.lengths.append(length | _BEGINS if begins else length)
        self.units.append(unit)
        self.inner.append(offset)
        self.digests += digest


def encode(
    units: Units,
    pieces: MapPieces,
    size: int,
    blob_size: int,
    prefix: int = 0,
    hot: Sequence[tuple[int, int]] = (),
) -> bytes:
    """Return the map of a device of `size` bytes.

    `blob_size`: bytes; `prefix`, `hot`: as ChunkMap has them. Raises ImageError for pieces that do not lie in their
    units, or not in the order of these.
    """
    before, plain = 0, units.plain
    for unit, offset, length in zip(pieces.units, pieces.inner, pieces.lengths, strict=True):
        if unit >= len(plain) or offset + (length & ~_BEGINS) > plain[unit]:
            raise ImageError("a part of a file does not lie where it says")
        if unit < before:
            raise ImageError("its files are not in the order of the layer")
        before = unit
    stored = array("I", units.stored)
    if len(units) and units.end > blob_size:
        raise ImageError("it speaks of bytes behind the layer's end")
    if len(units) and units.codec == "gzip":
        # Where the last member ends only the footer says, which nothing vouches for: a wrong one must not make a map
        # that others would use too, and lack bytes by.
        most = max(units.stored[-1], units.plain[-1] + units.plain[-1] // 1000 + _GZIP_HEAD)
        stored[-1] = min(blob_size - units.offsets[-1], most, UNIT_MAX)
    spans = units.codec == "span"
    by_unit = units.digest_of == "stored"
    head = _HEADER.pack(
        _MAGIC,
        _CODECS.index(units.codec),
        by_unit,
        size,
        prefix,
        len(hot),
        len(units),
        len(pieces.starts),
        len(units.windows),
    )
    columns = (
        *(units.offsets, pieces.starts, units.window_ends if spans else array("Q")),
        array("Q", (number for row in hot for number in row)),
        *(stored, array("I", units.plain), pieces.lengths, pieces.units, pieces.inner),
        *(units.bits if spans else array("B"), units.digests if by_unit else pieces.digests, units.windows),
    )
    return head + b"".join(bytes(column) for column in columns)
