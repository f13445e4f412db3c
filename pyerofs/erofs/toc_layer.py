"""A tar layer by its table of contents: the same table of entries that one pass over it makes, and its chunk map.

Nothing but the table of contents is read. The contents of files become places on a virtual device: a content that is
there already takes none, and neither do long runs of zeros.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ImageError
from ..tar.reader import FILE
from ..tar.toc.model import ZEROS, Toc, TocEntry, TocError, TocPiece
from .chunk_map import MapPieces, encode
from .data_map import BLOCK, Extent
from .layer import SIZE_MAX
from .layer_table import LayerTable

if TYPE_CHECKING:
    from ..tar.allowance import Allowance

VERSION = 2  # of what the same table of contents gives: what another version has made is made again
HOLE_MIN = 64 << 10  # bytes of zeros that are left out of the device; fewer are not worth a map of the file's blocks


class TocLayer(NamedTuple):
    """`table` of the entries, whose contents lie on the device of `chunk_map`, as bytes."""

    table: LayerTable
    chunk_map: bytes


def map_layer(toc: Toc, blob_size: int, allowance: Allowance | None = None) -> TocLayer:
    """Make a layer of its table of contents. `blob_size` in bytes; `allowance`: what it may decompress to.

    Raises TocError for a table by which it cannot be read exactly, ImageError for what is too much.
    """
    table = LayerTable()
    device = _Device(table, allowance)
    for found in toc.entries:
        content = device.place(found) if found.entry.kind == FILE else 0
        table.add(found.entry, content)
    table.device_size = device.size
    try:
        chunk_map = encode(toc.units, device.pieces, device.size, blob_size, _prefix(toc, device), _hot(toc, device))
    except ImageError as error:
        raise TocError(str(error)) from None
    if allowance is not None:
        allowance.take(device.size)  # only now: a layer that cannot be read so is read the other way
    return TocLayer(table, chunk_map)


def _prefix(toc: Toc, device: _Device) -> int:
    """Return where on the device the landmark lies."""
    if toc.landmark is None:
        return 0
    pieces = device.pieces
    for start, unit in zip(pieces.starts, pieces.units, strict=True):
        if unit < len(toc.units) and toc.units.offsets[unit] >= toc.landmark:
            return start
    return device.size


def _hot(toc: Toc, device: _Device) -> list[tuple[int, int]]:
    """Return what of the device the parts of the blob hold that the image wants, as offsets and lengths."""
    if not toc.prefetch:
        return []
    found = []
    begins = array("Q", (toc.units.offsets[unit] for unit in device.pieces.units))  # in the blob, of each piece's unit
    for begin, end in toc.prefetch:
        first, behind = bisect_left(begins, begin), bisect_left(begins, end - 1)  # a span's last byte may be the next's
        if first < behind:
            start = device.pieces.starts[first]
            until = device.pieces.starts[behind] if behind < len(begins) else device.size
            found.append((start, until - start))
    return found


class _Device:
    """Gives contents their places, one after another. `size`: bytes so far, whole blocks."""

    def __init__(self, table: LayerTable, allowance: Allowance | None) -> None:
        self._contents = table.contents
        self._allowance = allowance
        self.pieces = MapPieces()
        self.size = 0

    def place(self, found: TocEntry) -> int:
        """Place the content of a file; return its number in the data map."""
        pieces, size = found.pieces, found.entry.size
        if len(pieces) == 1 and pieces[0].unit != ZEROS and pieces[0].length == size:
            return self._place_piece(pieces[0])
        if sum(piece.length for piece in pieces) != size:
            raise TocError(f"its chunks do not make up the file {found.entry}")
        if all(piece.unit == ZEROS for piece in pieces):
            return 0
        # Not the digest of the content, which is only stated, perhaps of two files with different sizes: one of them
        # would get bytes of others.
        digest = found.identity()
        known = self._contents.find(0, digest) if digest else None
        if known is not None:
            return known
        extents = list(_extents(pieces, size, self.size))
        start = self._take(sum(extent.blocks for extent in extents))
        self._add(pieces, extents)
        if extents[0] == Extent(0, -(-size // BLOCK), start):
            return self._contents.add(0, start, digest)
        return self._contents.add_extents(0, tuple(extents), digest)

    def _place_piece(self, piece: TocPiece) -> int:
        """Place a content in one piece: what most files have."""
        unit, offset, length, digest = piece
        known = length.to_bytes(8, "little") + digest if digest else b""
        number = self._contents.find(0, known) if known else None
        if number is not None:
            return number
        start = self._take(-(-length // BLOCK))
        self.pieces.add(start, length, unit, offset, digest, begins=True)
        return self._contents.add(0, start, known)

    def _take(self, blocks: int) -> int:
        """Take the next blocks; return where they begin."""
        start = self.size
        self.size += blocks * BLOCK
        if self._allowance is not None:
            self._allowance.check(self.size)
        if self.size > SIZE_MAX:
            raise TocError("its files are larger than EROFS can have them")
        return start

    def _add(self, pieces: tuple[TocPiece, ...], extents: list[Extent]) -> None:
        at, current, begins = 0, 0, True
        for unit, offset, length, digest in pieces:
            if unit != ZEROS:
                while at >= (extents[current].first + extents[current].blocks) * BLOCK:
                    current += 1
                start = extents[current].start + at - extents[current].first * BLOCK
                self.pieces.add(start, length, unit, offset, digest, begins=begins)
                begins = False
            at += length


def _extents(pieces: tuple[TocPiece, ...], size: int, start: int) -> Iterator[Extent]:
    """Yield the blocks of a file that are to lie on the device, from the byte `start` on: all but long zeros."""
    blocks = -(-size // BLOCK)
    first = 0
    for begin, end in _zeros(pieces):
        hole, hole_end = -(-begin // BLOCK), (blocks if end == size else end // BLOCK)
        if (hole_end - hole) * BLOCK < HOLE_MIN:
            continue
        if hole > first:
            yield Extent(first, hole - first, start)
            start += (hole - first) * BLOCK
        first = hole_end
    if blocks > first:
        yield Extent(first, blocks - first, start)


def _zeros(pieces: tuple[TocPiece, ...]) -> Iterator[tuple[int, int]]:
    """Yield runs of zeros, first byte and end, those without a gap as one."""
    at = 0
    begin = -1
    for unit, _, length, _ in pieces:
        if unit == ZEROS:
            begin = at if begin < 0 else begin
        elif begin >= 0:
            yield begin, at
            begin = -1
        at += length
    if begin >= 0:
        yield begin, at
