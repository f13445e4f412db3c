"""What the table of contents (TOC) of a tar layer says, whatever its format: its files, and where their bytes are.

A unit is the smallest part of the blob that is fetched and decompressed by itself; a piece is a range of a file that
lies in one unit. Nothing of a unit may be passed on before it has been checked: `DigestOf` says against what.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ...errors import ImageError
from ..reader import TarEntry

# How a unit becomes plain bytes: one gzip member; one or more zstd frames; a range of a deflate stream that begins at a
# checkpoint; as it is.
Codec = Literal["gzip", "zstd", "span", "none"]
# Whose SHA-256 is known: that of each piece, over its plain bytes (the pieces have it, the units have none), or that of
# each unit, over its bytes as they are stored (the units have it, the pieces have none).
DigestOf = Literal["plain", "stored"]

ZEROS = -1  # for a piece's unit: it is zeros, and is never fetched
UNIT_MAX = 32 << 20  # bytes of a unit, stored or plain: what a source holds in memory at once
DIGEST_SIZE = 32  # of SHA-256


class TocError(ImageError):
    """A layer cannot be read by its table of contents, but only as the archive that it is.

    The text says why, of "it" for the table: "it names a file twice".
    """


class TocPiece(NamedTuple):
    """`length` bytes of a file that are the unit's plain bytes from `offset` on; `unit` ZEROS: that many zeros.

    `digest`: SHA-256 of these bytes, b"" where the unit's is compared instead, or they are zeros.
    """

    unit: int
    offset: int
    length: int
    digest: bytes


class TocEntry(NamedTuple):
    """An entry, and of a file its pieces: in the order of the file, and without a gap from 0 to `entry.size`.

    `digest`: SHA-256 of the whole content, b"" where it is not known. It is a statement of the TOC that no one verifies
    when a part is read: it must not decide which bytes are served. `identity()` may.
    """

    entry: TarEntry
    pieces: tuple[TocPiece, ...] = ()
    digest: bytes = b""

    def identity(self) -> bytes:
        """Return what two files share only if they have the same bytes once these are checked; b"": not known."""
        hasher = hashlib.sha256()
        for piece in self.pieces:
            if not piece.digest and piece.unit != ZEROS:
                return b""
            hasher.update(struct.pack("<Q", piece.length) + piece.digest.ljust(DIGEST_SIZE, b"\0"))
        return hasher.digest()


class Units:
    """The units of a blob in its order, as columns: `offsets` and `stored` lengths in the blob, `plain` lengths.

    `plain`: bytes that are wanted of it; what follows them in the unit, tar padding and headers, is of no use.
    `digests`: DIGEST_SIZE bytes a unit, none at all where `digest_of` is "plain". Of codec "span" also what
    span.inflate_span() wants: `bits`, and `windows`, those of all units in one, each up to its `window_ends`. The first
    byte of a span that has bits is the last one of the span before it, too. For one thread.
    """

    def __init__(self, codec: Codec, digest_of: DigestOf) -> None:
        self.codec: Codec = codec
        self.digest_of: DigestOf = digest_of
        self.offsets, self.stored, self.plain = array("Q"), array("Q"), array("Q")
        self.digests = bytearray()
        self.bits, self.windows, self.window_ends = array("B"), bytearray(), array("Q")
        self.end = 0  # of the last one in the blob

    def __len__(self) -> int:
        return len(self.offsets)

    def add(
        self, offset: int, stored: int, plain: int, digest: bytes = b"", *, bits: int = 0, window: bytes = b""
    ) -> int:
        """Add the next unit; return its number. Raises TocError where it overlaps the one before, or is too large.

        `bits`, `window`: as inflate_span() has them, of codec "span" alone.
        """
        if not self.end - bool(bits) <= offset <= 1 << 62:
            raise TocError("its offsets do not rise")
        if not (0 < stored <= UNIT_MAX and 0 < plain <= UNIT_MAX):
            raise TocError(f"a part of it has {stored} bytes, {plain} of content; at most {UNIT_MAX} are taken")
        if len(digest) != (DIGEST_SIZE if self.digest_of == "stored" else 0):
            raise TocError("a part of it has no SHA-256")
        self.offsets.append(offset)
        self.stored.append(stored)
        self.plain.append(plain)
        self.digests += digest
        if self.codec == "span":
            self.bits.append(bits)
            self.windows += window
            self.window_ends.append(len(self.windows))
        self.end = offset + stored
        return len(self.offsets) - 1


class Toc:
    """A TOC that is being read: `entries` once, in the order of the archive. For one thread.

    `entries` decodes entry by entry, and may raise TocError at any of them: the TOC is good for something only when it
    has come to its end. `units` and `landmark` are complete only then: a piece may be of a unit that is not there yet.
    `landmark`: the offset in the blob up to which the image wants to be fetched when it is mounted, or None.
    `prefetch`: the ranges of the blob, begin and end, that it wants instead then, the most urgent first.
    """

    def __init__(self, name: str, units: Units) -> None:
        self.name = name  # of the format, for messages: "eStargz"
        self.units = units
        self.landmark: int | None = None
        self.prefetch: list[tuple[int, int]] = []
        self.entries: Iterator[TocEntry] = iter(())
