"""Contents of files laid one after another into the data of a device, as they come out of a stream."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator

from ..tar import reader
from ..tar.reader import Tar
from .data_map import BLOCK, INLINE_MAX, DataMap, Extent
from .layer_tree import AppliedLayer

PIECE = 1 << 20  # bytes that are kept until they are landed; a content of no more lands only if it is new


class Laying:
    """Lays contents at whole blocks of a device. For one thread.

    `land(offset, data)` is given the device's bytes in order: whole blocks, up to PIECE bytes at once and a block more,
    which it may not keep. Only a content above PIECE that proves to be there already lands in vain: what comes next
    lands in the same place, or nothing does. `size`: bytes of the device that count. Memory is bounded by PIECE, but
    for contents of up to INLINE_MAX bytes, which the data map keeps.

    Such contents are stored beside their inodes, and all others at a block of their own. A larger limit would save
    space in an image that is not compressed (half a block for each file), but would push inodes apart: a search through
    all names would fetch that space instead.
    """

    def __init__(self, contents: DataMap, device: int, land: Callable[[int, bytes | bytearray], None]) -> None:
        self._contents, self._device, self._land = contents, device, land
        self.size = 0

    def lay(self, size: int, pieces: Iterable[tuple[int, bytes]]) -> int:
        """Lay a content of `size` bytes. `pieces`: rising offsets and bytes; what they leave out is zeros.

        Gives the content's number in the data map.
        """
        start = self.size
        buffer = bytearray()
        hasher = hashlib.sha256()
        extents: list[Extent] = []
        first = 0  # block of the file where the current extent begins
        extent_at = landed = start  # on the device
        end = 0  # of what the file has so far

        def close() -> None:
            nonlocal extent_at
            buffer.extend(bytes(-len(buffer) % BLOCK))
            here = landed + len(buffer)
            if here > extent_at:
                extents.append(Extent(first, (here - extent_at) // BLOCK, extent_at))
            extent_at = here

        for offset, piece in pieces:
            if not piece:
                continue
            if offset // BLOCK > -(-end // BLOCK) or not (extents or end):
                close()
                first = offset // BLOCK
                end = first * BLOCK
            gap = bytes(offset - end)
            hasher.update(gap)
            hasher.update(piece)
            buffer += gap
            buffer += piece
            end = offset + len(piece)
            if len(buffer) > PIECE:
                whole = len(buffer) // BLOCK * BLOCK
                self._land(landed, buffer[:whole])
                landed += whole
                del buffer[:whole]
        if not end:
            return 0
        if landed == start and size <= INLINE_MAX and not extents and not first:
            return self._contents.add_inline(self._device, bytes(buffer).ljust(size, b"\0"))
        close()
        digest = hasher.digest()
        blocks = -(-size // BLOCK)
        dense = len(extents) == 1 and extents[0].first == 0 and extents[0].blocks == blocks
        if not dense:
            hasher = hashlib.sha256(digest + b"".join(struct.pack("<QQ", of.first, of.blocks) for of in extents))
            digest = b"sparse" + hasher.digest()
        known = self._contents.find(self._device, digest)
        if known is not None:
            return known
        if buffer:
            self._land(landed, buffer)
        self.size = landed + len(buffer)
        if dense:
            return self._contents.add(self._device, start, digest)
        return self._contents.add_extents(self._device, tuple(extents), digest)

    def copy(self, number: int, size: int, read: Callable[[int, int, int], bytes]) -> int:
        """Lay a content of another device here too; `read(device, offset, length)` gives that device's bytes.

        With `read` bound, what `LayerTree.begin` wants for layers that stand alone.
        """
        return self.lay(size, self._read(number, size, read))

    def _read(self, number: int, size: int, read: Callable[[int, int, int], bytes]) -> Iterator[tuple[int, bytes]]:
        inline = self._contents.inline.get(number)
        if inline is not None:
            yield 0, inline
            return
        device = self._contents.devices[number]
        for extent in self._contents.pieces(number, size):
            offset = extent.first * BLOCK
            length = min(extent.blocks * BLOCK, size - offset)
            for at in range(0, length, PIECE):
                yield offset + at, read(device, extent.start + at, min(PIECE, length - at))


def apply_layer(tar: Tar, layer: AppliedLayer, laying: Laying) -> None:
    """Apply all entries of an archive to a layer, and lay their contents. Raises ImageError."""
    for entry in tar:
        content = laying.lay(entry.size, tar.data()) if entry.kind == reader.FILE else 0
        layer.add(entry, content)
