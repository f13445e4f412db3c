"""Layers with chunk indexes, raw and compressed, of bytes that need not be a filesystem."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterable, Iterator

import zstandard
from images import EROFS, Layer, digest_of

from pyerofs import chunkindex

INDEX = chunkindex.MEDIA_TYPE
ZSTD = f"{EROFS}+zstd"
CONTENT = "org.erofs.uncompressed-digest"
SKIPPABLE = 0x184D2A5E


def image(blocks: int, seed: int = 1) -> bytes:
    """So many blocks of 4 KiB that begin as EROFS does; half of them are easily compressed."""
    rng = random.Random(seed)
    body = b"".join(
        rng.randbytes(4096) if n % 2 else bytes([rng.randrange(256)]) * 4096 for n in range(max(blocks - 1, 0))
    )
    head = bytearray(4096)
    struct.pack_into("<IIIBBH8x8x4xI", head, 1024, 0xE0F5E1E2, 0, 0, 12, 0, 0, blocks)
    return bytes(head) + body


def cut(data: bytes, sizes: int | Iterable[int]) -> Iterator[bytes]:
    """`data` in pieces of that size, or of these sizes and a last one."""
    if isinstance(sizes, int):
        sizes = [sizes] * (len(data) // sizes)
    at = 0
    for size in sizes:
        if piece := data[at : at + size]:
            yield piece
        at += size
    if at < len(data):
        yield data[at:]


def index_of(pieces: Iterable[bytes], *, hashed: bool = True) -> bytes:
    """The index of a raw layer with these chunks."""
    entries, at = [], 0
    for piece in pieces:
        entries.append((at, at, hashlib.sha256(piece).digest()))
        at += len(piece)
    made = chunkindex.encode(chunkindex.NONE, at, entries)
    return made if hashed else _unhashed(made)


def _unhashed(made: bytes) -> bytes:
    head = bytearray(made[:32])
    head[20:22] = b"\0\0"
    return bytes(head) + b"".join(made[at : at + 16] for at in range(32, len(made), 48))


def raw(data: bytes, sizes: int | Iterable[int], *, hashed: bool = True, **more: str) -> Layer:
    """The index lies behind the image."""
    index = index_of(cut(data, sizes), hashed=hashed)
    return Layer(data + index, **{**chunkindex.describe(len(data), index), **more})


def alone(layer: Layer, index: bytes) -> list[Layer]:
    """A layer and its stand-alone index."""
    return [layer, Layer(index, INDEX, **{"org.erofs.chunk-index.target": layer.digest})]


def frames(data: bytes, sizes: int | Iterable[int], says: int | None = None, **parameters: bool) -> tuple[bytes, bytes]:
    """The chunks compressed one by one, and their index; `says`: the image's size by that, where it lies."""
    compressor = zstandard.ZstdCompressor(**parameters)
    body, entries, at = b"", [], 0
    for piece in cut(data, sizes):
        frame = compressor.compress(piece)
        entries.append((len(body), at, hashlib.sha256(frame).digest()))
        body += frame
        at += len(piece)
    return body, chunkindex.encode(chunkindex.ZSTD, at if says is None else says, entries)


def compressed(
    data: bytes,
    sizes: int | Iterable[int] = 1 << 16,
    *,
    hashed: bool = True,
    content: bool = True,
    says: int | None = None,
    **parameters: bool,
) -> Layer:
    """A +zstd layer with its index."""
    body, index = frames(data, sizes, says, **parameters)
    index = index if hashed else _unhashed(index)
    section = struct.pack("<II", SKIPPABLE, len(index)) + index
    found = {chunkindex.RANGE: f"{len(body)}", chunkindex.DIGEST: digest_of(index)}
    if content:
        found[CONTENT] = digest_of(data)
    return Layer(body + section, ZSTD, **found)


def stream(data: bytes, sizes: int | Iterable[int] = 1 << 20, *, content: bool = True, tail: bytes = b"") -> Layer:
    """A +zstd layer without an index."""
    found = {CONTENT: digest_of(data)} if content else {}
    return Layer(frames(data, sizes)[0] + tail, ZSTD, **found)
