"""The chunk index of an EROFS layer (docs/image-format.md, "Chunk index"): read with every check, and made.

It comes from a stranger: whatever its shape is, the only exception is ImageError. An index that this version does not
understand is no error: the layer is then read as if it had none. Pure values; an Index may be shared between threads.
"""

from __future__ import annotations

import hashlib
import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from ..errors import ImageError
from ..oci.reference import is_digest

MEDIA_TYPE = "application/vnd.erofs.chunk-index.v1"
RANGE = "org.erofs.chunk-index.range"
DIGEST = "org.erofs.chunk-index.digest"
KIND = "org.erofs.chunk-index.mediaType"
NONE, ZSTD = 0, 1  # compression
CHUNK_SIZE = 128 << 10  # bytes; what a single miss asks for, so that its check costs no other byte

_MAGIC = b"\xcd\xe4\xec\x67"
_HEADER = struct.Struct("<4sBBHQIBB10s")  # magic, version, compression, flags, size, chunks, algorithm, hash size
_ENTRY = struct.Struct("<QQ")  # offset in the blob, offset in the image
_FRAME = struct.Struct("<II")  # a zstd skippable frame: magic, length
_FRAME_MAGIC = range(0x184D2A50, 0x184D2A60)
_VERSION = 1
_SHA2 = 1
_HASHES: dict[int, Callable[[bytes], hashlib._Hash]] = {32: hashlib.sha256, 64: hashlib.sha512}
_RANGE = re.compile(r"([0-9]{1,19})(?::([0-9]{1,19}))?")
_CHUNKS_MAX = (1 << 32) - 1


class IndexLocation(NamedTuple):
    """Where an index lies in its blob: bytes [offset, end). `frame`: in a zstd skippable frame, which begins there."""

    offset: int
    end: int
    digest: str
    frame: bool


class Chunk(NamedTuple):
    """Image bytes [start, start + length), stored as blob bytes [offset, offset + stored). `hash` is over these."""

    start: int
    length: int
    offset: int
    stored: int
    hash: bytes

    def verify(self, data: bytes) -> None:
        """Raise ImageError unless `data` is the chunk as it is stored; without a hash only its length is compared."""
        if len(data) != self.stored:
            raise ImageError(f"the chunk at {self.start} has {len(data)} bytes instead of {self.stored}")
        if self.hash and _HASHES[len(self.hash)](data).digest() != self.hash:
            raise ImageError(f"the chunk at {self.start} is corrupt: its hash is not the one in the index")


class ChunkIndex:
    """The chunks of one layer, in order; they cover [0, size) of the image without a gap. Made by parse() alone."""

    def __init__(self, compression: int, size: int, hash_size: int, payload: bytes, stored_end: int) -> None:
        self.compression = compression
        self.size = size
        self.hash_size = hash_size
        step = _ENTRY.size + hash_size
        self._payload = payload
        entries = [_ENTRY.unpack_from(payload, at) for at in range(_HEADER.size, len(payload), step)]
        self._offsets = array("Q", (offset for offset, _ in entries))
        self._starts = array("Q", (start for _, start in entries))
        self._stored_end = stored_end

    def __len__(self) -> int:
        return len(self._starts)

    def chunk(self, number: int) -> Chunk:
        """IndexError where there is no such chunk."""
        start, offset = self._starts[number], self._offsets[number]
        last = number == len(self._starts) - 1
        length = (self.size if last else self._starts[number + 1]) - start
        stored = length
        if self.compression:
            stored = (self._stored_end if last else self._offsets[number + 1]) - offset
        at = _HEADER.size + number * (_ENTRY.size + self.hash_size) + _ENTRY.size
        return Chunk(start, length, offset, stored, self._payload[at : at + self.hash_size])

    def find(self, position: int) -> int:
        """Return the number of the chunk that holds the image's byte at `position`, 0 <= position < size."""
        if not 0 <= position < self.size:
            raise ValueError("the position does not lie within the image")
        return bisect_right(self._starts, position) - 1

    def check_order(self) -> None:
        starts, offsets = self._starts, self._offsets
        if not starts:
            if self.size:
                raise _corrupt(f"no chunk holds its {self.size} bytes")
            return
        if starts[0] or any(a >= b for a, b in pairwise(starts)) or starts[-1] >= self.size:
            raise _corrupt("its chunks are not in order, or do not cover the image")
        if self.compression == NONE:
            if offsets != starts:
                raise _corrupt("a chunk of a raw layer lies elsewhere in the blob than in the image")
        elif any(a >= b for a, b in pairwise(offsets)) or offsets[-1] >= self._stored_end:
            raise _corrupt("its chunks are not in order in the blob")


def locate(annotations: Mapping[str, str], blob_size: int, compressed: bool) -> IndexLocation | None:
    """Where a layer of `blob_size` bytes has its index by its descriptor; None: it has none that could be used.

    Raises ImageError.
    """
    text, digest = annotations.get(RANGE), annotations.get(DIGEST)
    if text is None or annotations.get(KIND, MEDIA_TYPE) != MEDIA_TYPE:
        return None
    found = _RANGE.fullmatch(text)
    if not found:
        raise ImageError(f"the annotation {RANGE} is malformed: {text[:80]!a}")
    offset, end = int(found[1]), int(found[2]) if found[2] else blob_size
    if not offset < end <= blob_size:
        raise ImageError(f"the annotation {RANGE} is {text}, which does not lie within the blob's {blob_size} bytes")
    if digest is None:  # nothing that has not been verified may be used
        return None
    if not is_digest(digest):
        raise ImageError(f"the annotation {DIGEST} is not a sha256 or sha512 digest")
    return IndexLocation(offset, end, digest, compressed)


def parse(section: bytes, where: IndexLocation) -> ChunkIndex | None:
    """Parse the index in `section`, the bytes of the blob that `where` names.

    None for one that must be ignored. Raises ImageError for one that is corrupt or has another digest.
    """
    if len(section) != where.end - where.offset:
        raise _corrupt(f"it has {len(section)} bytes instead of {where.end - where.offset}")
    payload = _unframed(section) if where.frame else section
    name = where.digest.partition(":")[0]
    if f"{name}:{hashlib.new(name, payload).hexdigest()}" != where.digest:
        raise _corrupt(f"its digest is not {where.digest}")
    if len(payload) < _HEADER.size:
        raise _corrupt(f"it has only {len(payload)} bytes")
    magic, version, compression, flags, size, count, algorithm, hash_size, reserved = _HEADER.unpack_from(payload)
    if magic != _MAGIC:
        raise _corrupt("it does not start with the magic number")
    if version != _VERSION or flags or compression not in (NONE, ZSTD) or algorithm not in (0, _SHA2):
        return None
    if any(reserved):
        raise _corrupt("a reserved byte is not zero")
    if (compression == ZSTD) != where.frame:
        raise _corrupt("its compression is not the layer's")
    if hash_size not in (_HASHES if algorithm else (0,)):
        raise _corrupt(f"its hashes have {hash_size} bytes")
    if len(payload) != _HEADER.size + count * (_ENTRY.size + hash_size):
        raise _corrupt(f"{count} chunks do not take its {len(payload)} bytes")
    if compression == NONE and size > where.offset:
        raise _corrupt("it lies within the image")
    index = ChunkIndex(compression, size, hash_size, payload, where.offset)
    index.check_order()
    return index


def encode(compression: int, size: int, entries: Iterable[tuple[int, int, bytes]]) -> bytes:
    """Return an index of an image of `size` bytes.

    An entry: offset in the blob, offset in the image, SHA-256 of the chunk as stored.
    """
    body = bytearray()
    count = 0
    for offset, start, digest in entries:
        body += _ENTRY.pack(offset, start) + digest
        count += 1
    if count > _CHUNKS_MAX:
        raise ImageError(f"the image would have {count} chunks: choose larger ones")
    return _HEADER.pack(_MAGIC, _VERSION, compression, 0, size, count, _SHA2, 32, bytes(10)) + bytes(body)


def build(
    read: Callable[[int], bytes], chunk_size: int = CHUNK_SIZE, compress: Callable[[bytes], bytes] | None = None
) -> bytes:
    """Build the index of a layer.

    `read(n)` gives the next n bytes of its image, fewer only at its end. `compress(chunk)` returns, and keeps, each
    chunk of a zstd layer as it is stored.
    """
    entries = []
    start = offset = 0
    while piece := read(chunk_size):
        stored = compress(piece) if compress else piece
        entries.append((offset, start, hashlib.sha256(stored).digest()))
        start += len(piece)
        offset += len(stored)
    return encode(ZSTD if compress else NONE, start, entries)


def framed(index: bytes) -> bytes:
    """As it is put behind the frames of a zstd layer: a decompressor of the whole layer skips it."""
    return _FRAME.pack(_FRAME_MAGIC[0], len(index)) + index


def describe(offset: int, index: bytes, *, frame: bool = False) -> dict[str, str]:
    """Return the annotations that tell of the index put into a blob at `offset`, framed() or as it is."""
    end = offset + len(index) + (_FRAME.size if frame else 0)
    return {RANGE: f"{offset}:{end}", DIGEST: f"sha256:{hashlib.sha256(index).hexdigest()}"}


def _unframed(section: bytes) -> bytes:
    magic, length = _FRAME.unpack_from(section) if len(section) >= _FRAME.size else (0, 0)
    if magic not in _FRAME_MAGIC or length != len(section) - _FRAME.size:
        raise _corrupt("it is not in a zstd skippable frame of its length")
    return section[_FRAME.size :]


def _corrupt(why: str) -> ImageError:
    return ImageError(f"the layer's chunk index is corrupt: {why}")
