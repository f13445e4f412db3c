"""Where the contents of files lie: on which device, from which byte on, with which holes; equal contents once."""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Self

from ..errors import ImageError

BLOCK = 4096  # bytes
INLINE_MAX = 256  # bytes of a content that is better stored beside its inode: see `Laying`
HOLE = 0xFFFFFFFF  # in a chunk map
_HOLES = 0  # the content without a byte: nothing but zeros
_CHUNK_BITS_MAX = 31
_CHUNKS_MAX = 1 << 24  # of one file: 64 MiB of map


class Extent(NamedTuple):
    """`blocks` blocks of a file from its block `first` on, which lie at the byte `start` of the device."""

    first: int
    blocks: int
    start: int


class DataMap:
    """Contents by number, on numbered devices. For one thread.

    Number 0 is of files without a byte but zeros. `devices` and `starts` (bytes, a multiple of BLOCK) are columns; a
    content in one piece needs no more. `extents` has those with holes or in pieces, `inline` those that go into the
    metadata. With `separate`, contents are shared within a device only: each is to stand alone.
    """

    __slots__ = ("_identities", "_known", "_separate", "devices", "extents", "inline", "starts")

    def __init__(self, *, separate: bool = False) -> None:
        self.devices = array("I", [0])
        self.starts = array("Q", [0])
        self.extents: dict[int, tuple[Extent, ...]] = {}
        self.inline: dict[int, bytes] = {}
        self._known: dict[tuple[int, bytes], int] = {}
        self._identities: dict[int, hashlib._Hash] = {}
        self._separate = separate

    def find(self, device: int, digest: bytes) -> int | None:
        """Return the number of a content with this digest, on any device unless they are separate."""
        return self._known.get((device if self._separate else 0, digest))

    def add(self, device: int, start: int, digest: bytes) -> int:
        """Add a content in one piece. `start`: bytes on the device, a multiple of BLOCK. Gives its number.

        `digest` stands for the content together with its size and holes; without one, the content is not shared.
        """
        if start % BLOCK:
            raise ValueError(f"byte {start} is not the start of a block")
        self.devices.append(device)
        self.starts.append(start)
        number = len(self.starts) - 1
        if digest:
            self._known.setdefault((device if self._separate else 0, digest), number)
            identity = self._identities.get(device) or self._identities.setdefault(device, hashlib.sha256())
            identity.update(struct.pack("<QQ", start, len(digest)) + digest)
        return number

    def add_extents(self, device: int, extents: tuple[Extent, ...], digest: bytes) -> int:
        """Add a content in pieces, which are in the order of the file; what lies between them is zeros."""
        number = self.add(device, 0, digest)
        self.extents[number] = extents
        return number

    def add_inline(self, device: int, content: bytes) -> int:
        """Add a content for the metadata. One that is there already is not looked for: it costs as much as that."""
        number = self.add(device, 0, b"")
        self.inline[number] = content
        return number

    def identity(self, device: int) -> bytes:
        """Return what tells apart what lies on the device: a hash of all digests and places."""
        known = self._identities.get(device)
        return known.digest() if known else b""

    def copy(self) -> Self:
        """Return another map of the same contents, to move them in."""
        other = self.__class__()
        other.devices, other.starts = self.devices, self.starts[:]
        other.extents, other.inline = dict(self.extents), self.inline
        other._identities, other._known, other._separate = self._identities, self._known, self._separate
        return other

    def place(self, number: int, extents: tuple[Extent, ...], blocks: int) -> None:
        """Give a content of `blocks` blocks other places on its device."""
        if len(extents) == 1 and extents[0].first == 0 and extents[0].blocks == blocks:
            self.extents.pop(number, None)
            self.starts[number] = extents[0].start
        else:
            self.extents[number] = extents

    def pieces(self, number: int, size: int) -> tuple[Extent, ...]:
        """Return the pieces of a content that is on a device, of a file of `size` bytes."""
        if number == _HOLES:
            return ()
        return self.extents.get(number) or (Extent(0, -(-size // BLOCK), self.starts[number]),)

    def move(self, device: int, stretches: Sequence[tuple[int, int]]) -> None:
        """Let only these stretches be on the device (start and length of each, rising), one after another.

        Contents that lie elsewhere on it are lost: no file may have them.
        """
        old = [start for start, _ in stretches]
        new = list(accumulate((length for _, length in stretches), initial=0))

        def moved(start: int) -> int | None:
            at = bisect_right(old, start) - 1
            inside = at >= 0 and start < old[at] + stretches[at][1]
            return new[at] + start - old[at] if inside else None

        for number in range(1, len(self.starts)):
            if self.devices[number] != device or number in self.inline:
                continue
            pieces = self.extents.get(number)
            if pieces is None:
                self.starts[number] = moved(self.starts[number]) or 0
            else:
                self.extents[number] = tuple(piece._replace(start=moved(piece.start) or 0) for piece in pieces)

    def chunk_map(self, number: int, size: int) -> tuple[int, array[int]] | None:
        """Bits of a chunk's size in blocks, and the blocks on the device of each chunk of a file of `size` bytes.

        HOLE stands for zeros. None: the content lies in one piece (or has no byte). Raises ImageError for a map that
        would be too large.
        """
        extents = self.extents.get(number)
        blocks = -(-size // BLOCK)
        if number == _HOLES:
            extents = ()
        if extents is None or not blocks:
            return None
        edges = 0
        for block, count, _ in extents:
            edges |= block | (block + count if block + count < blocks else 0)
        bits = (edges & -edges).bit_length() - 1 if edges else (blocks - 1).bit_length()
        bits = min(bits, _CHUNK_BITS_MAX)
        wanted = (blocks - 1 >> bits) + 1
        if wanted > _CHUNKS_MAX:
            raise ImageError(f"a sparse file of {size} bytes has too fine holes for its size")
        chunks = array("I", [HOLE]) * wanted
        for block, count, start in extents:
            first = start // BLOCK
            for at in range(0, count, 1 << bits):
                chunks[(block + at) >> bits] = first + at
        return bits, chunks
