"""A span: a unit that is a range of a gzip stream, which is inflated by itself from a checkpoint on."""

from __future__ import annotations

import zlib
from typing import NamedTuple

from ...core import SPAN_RIGHT, SPAN_SHORT, WINDOW, inflate_span
from ...errors import ImageError


class Checkpoint(NamedTuple):
    """Where a span begins: its first byte in the blob, and in the archive; with which `bits` and packed `window`."""

    offset: int
    plain: int
    bits: int
    window: bytes


def pack_window(window: bytes) -> bytes:
    """Return a window of WINDOW bytes, or an empty one, as it is kept."""
    return zlib.compress(window, 1) if window else b""


def unpack_window(packed: bytes) -> bytes:
    """Return what pack_window() got. Raises ImageError for anything else."""
    if not packed:
        return b""
    try:
        found = zlib.decompressobj().decompress(packed, WINDOW + 1)
    except zlib.error:
        found = b""
    if len(found) != WINDOW:
        raise ImageError("the checkpoint of a span is damaged")
    return found


def inflate_unit(stored: bytes, plain: int, bits: int, window: bytes) -> bytes:
    """Return the `plain` bytes of a span; `bits` and `window` as `Units` has them. Raises ImageError. Any thread."""
    result, found = inflate_span(stored, bits, unpack_window(window), plain)
    if result == SPAN_RIGHT:
        return found
    raise ImageError("a span ends too early" if result == SPAN_SHORT else "a span is corrupt")
