"""Layers with chunk indexes, raw and compressed, of bytes that need not be a filesystem."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import zstandard

from pyerofs.erofs import chunk_index
from tests.support.images import EROFS, Layer, digest_of

INDEX = chunk_index.MEDIA_TYPE
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


def encode(compression: int, size: int, chunks: Iterable[tuple[int, int, bytes]], hashes: str = "sha256") -> bytes:
    """An index; a chunk: offset in the blob, offset in the image, bytes as they are stored. `hashes`: "" for none."""
    entries = [(offset, at, hashlib.new(hashes, stored).digest() if hashes else b"") for offset, at, stored in chunks]
    made = bytearray(chunk_index.encode(compression, size, entries))
    made[20:22] = (1, hashlib.new(hashes).digest_size) if hashes else (0, 0)
    return bytes(made)


def index_of(pieces: Iterable[bytes], *, hashes: str = "sha256") -> bytes:
    """The index of a raw layer with these chunks."""
    chunks, at = [], 0
    for piece in pieces:
        chunks.append((at, at, piece))
        at += len(piece)
    return encode(chunk_index.NONE, at, chunks, hashes)


def raw(data: bytes, sizes: int | Iterable[int], *, hashes: str = "sha256", **more: str) -> Layer:
    """The index lies behind the image."""
    index = index_of(cut(data, sizes), hashes=hashes)
    return Layer(data + index, annotations={**chunk_index.describe(len(data), index), **more})


def alone(layer: Layer, index: bytes) -> list[Layer]:
    """A layer and its stand-alone index."""
    return [layer, Layer(index, INDEX, annotations={"org.erofs.chunk-index.target": layer.digest})]


def frames(
    data: bytes,
    sizes: int | Iterable[int],
    *,
    says: int | None = None,
    hashes: str = "sha256",
    lead: bytes = b"",
    **parameters: Any,
) -> tuple[bytes, bytes]:
    """The chunks compressed one by one behind `lead`, and their index; `says`: the image's size by that, where it
    lies."""
    compressor = zstandard.ZstdCompressor(**parameters)
    body, chunks, at = lead, [], 0
    for piece in cut(data, sizes):
        frame = compressor.compress(piece)
        chunks.append((len(body), at, frame))
        body += frame
        at += len(piece)
    return body, encode(chunk_index.ZSTD, at if says is None else says, chunks, hashes)


def compressed(
    data: bytes,
    sizes: int | Iterable[int] = 1 << 16,
    *,
    hashes: str = "sha256",
    content: bool = True,
    says: int | None = None,
    lead: bytes = b"",
    **parameters: Any,
) -> Layer:
    """A +zstd layer with its index."""
    body, index = frames(data, sizes, says=says, hashes=hashes, lead=lead, **parameters)
    section = struct.pack("<II", SKIPPABLE, len(index)) + index
    found = {chunk_index.RANGE: f"{len(body)}", chunk_index.DIGEST: digest_of(index)}
    if content:
        found[CONTENT] = digest_of(data)
    return Layer(body + section, ZSTD, annotations=found)


def stream(data: bytes, sizes: int | Iterable[int] = 1 << 20, *, content: bool = True, tail: bytes = b"") -> Layer:
    """A +zstd layer without an index."""
    found = {CONTENT: digest_of(data)} if content else {}
    return Layer(frames(data, sizes)[0] + tail, ZSTD, annotations=found)


KINDS: dict[str, Callable[..., Layer]] = {"raw": raw, "zstd": compressed}
