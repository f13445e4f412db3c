"""A layer's chunk map in the cache: a file beside the bytes that it vouches for, used where it lies."""

from __future__ import annotations

import hashlib
import mmap
import os
from typing import TYPE_CHECKING

from ..cache.directory import EntryInfo, hold
from ..cache.entry import Entry
from ..cache.files import open_file
from ..cache.paths import entry_path
from ..erofs.chunk_map import ChunkMap
from ..errors import ImageError, UnavailableError
from ..files import atomic_write

if TYPE_CHECKING:
    from ..erofs.layer import Layer

NAME = "chunks"
_PIECE = 1 << 20  # bytes


def find_map(layer: Layer, directory: str) -> ChunkMap | None:
    """Return the map that the cache has of a layer that names one, checked against its digest."""
    try:
        fd = open_file(os.path.join(entry_path(directory, layer.verified_key), NAME), os.O_RDONLY)
    except OSError:
        return None
    try:
        # Hashed by reading, not through the mapping: what is mapped counts as this process's memory once it is touched.
        hasher = hashlib.new(layer.map.partition(":")[0])
        at = 0
        while piece := os.pread(fd, _PIECE, at):
            hasher.update(piece)
            at += len(piece)
        if f"{hasher.name}:{hasher.hexdigest()}" != layer.map:
            return None
        return ChunkMap(mmap.mmap(fd, at, access=mmap.ACCESS_READ))
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def keep_map(layer: Layer, chunk_map: bytes, size: int, directory: str) -> Entry:
    """Put the map into the layer's entry, which is made for `size` bytes if need be; return that, in use by the caller.

    Raises UsageError, UnavailableError, OSError.
    """
    entry = Entry(directory, layer.verified_key, size)
    try:
        if entry.problem:
            raise UnavailableError(f"cannot keep the table of a layer in {directory}: {entry.problem}")
        if find_map(layer, directory) is None:
            atomic_write(os.path.join(entry.path, NAME), chunk_map)
    except BaseException:
        entry.close()
        raise
    return entry


def hold_mapped(directory: str, layer: Layer) -> Entry | None:
    """Open the cache entry of a layer that names a map, in use by the caller; None where the map is missing."""
    if find_map(layer, directory) is None:
        return None
    key = layer.verified_key
    return hold(EntryInfo(entry_path(directory, key), key, 0, 0.0))


def agrees_with_map(entry: Entry, key: str) -> bool | None:
    """Tell whether the bytes of a complete entry still have the digests of the map beside them.

    None where that cannot be told: the digests are those of compressed units, or the map is not there.
    """
    from ..erofs.layer import Layer

    algorithm, _, digits = key.partition(":")
    directory = os.path.dirname(os.path.dirname(entry.path))
    chunks = find_map(Layer(0, "", 0, map=f"{algorithm.partition('+')[0]}:{digits}"), directory)
    if chunks is None or chunks.stored_digests:
        return None
    end = 0
    for number in range(chunks.pieces):
        piece = chunks.piece(number)
        if os.pread(entry.data_fd, piece.start - end, end).strip(b"\0"):
            return False
        try:
            chunks.check_piece(number, os.pread(entry.data_fd, piece.length, piece.start))
        except ImageError:
            return False
        end = piece.end
    return True
