"""A layer's chunk index: from the cache, where it lies beside the bytes that it vouches for, or from the registry."""

from __future__ import annotations

import contextlib
import os
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from ..cache.files import read_file
from ..cache.paths import entry_path
from ..erofs import chunk_index
from ..erofs.layer import section_of
from ..errors import CorruptError, ImageError
from ..files import atomic_write
from ..retry import patiently

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..cache.entry import Entry
    from ..context import Context
    from ..erofs.layer import Layer
    from .blobs import BlobReader, BlobStore

NAME = "index"
SIZE_MAX = 64 << 20  # bytes: more than a million chunks


class LoadedIndex(NamedTuple):
    """`section`: the bytes that `chunks` was read from."""

    section: bytes
    chunks: chunk_index.ChunkIndex


def load_index(
    layer: Layer,
    blobs: BlobStore,
    directory: str,
    timeout: float,
    context: Context,
) -> LoadedIndex | None:
    """Return the index of a layer that names one, checked against its digest; None for an unknown version.

    `directory`: the cache's. Within `timeout` seconds. Raises RegistryError, ImageError.
    """
    place = layer.index
    assert place is not None  # noqa: S101 - the caller has looked
    length = place.end - place.offset
    if length > SIZE_MAX:
        way_out = "make the layer with larger chunks" if layer.compressed else "oci.verify=none ignores it"
        raise ImageError(f"the chunk index has {length} bytes, more than {SIZE_MAX >> 20} MiB ({way_out})")
    found = find_index(layer, directory, blobs.giver)
    if found:
        return found
    if layer.alone:
        blob, first = blobs.blob(place.digest, layer.alone_size, context.log), 0
    else:
        blob, first = blobs.blob(layer.digest, layer.size, context.log), place.offset
    blob.checked = True  # by its digest
    return patiently(lambda left: _fetch(layer, blob, first, context.cancelled), context.cancelled, timeout)


def find_index(layer: Layer, directory: str, giver: str = "") -> LoadedIndex | None:
    """Return the index that the cache has of a layer that names one, checked against its digest.

    Also one that lies with bytes that this giver has given.
    """
    place = layer.index
    assert place is not None  # noqa: S101 - the caller has looked
    for key in filter(None, (layer.verified_key, *_keys_without_hashes(layer, giver))):
        section = _kept(os.path.join(entry_path(directory, key), NAME))
        if len(section) == place.end - place.offset:
            with contextlib.suppress(ImageError):  # it was changed, or is another version's
                if found := _parsed(section, place):
                    return found
    return None


def _keys_without_hashes(layer: Layer, giver: str) -> tuple[str, ...]:
    return (layer.shared_key(by_index=True), layer.given_key(giver, by_index=True)) if layer.compressed else ()


def _parsed(section: bytes, place: chunk_index.IndexLocation) -> LoadedIndex | None:
    index = chunk_index.parse(section, place)
    return None if index is None else LoadedIndex(section, index)


def _kept(path: str) -> bytes:
    try:
        return read_file(path, SIZE_MAX + 1)
    except OSError:
        return b""


def _fetch(layer: Layer, blob: BlobReader, first: int, cancel: Callable[[], bool]) -> LoadedIndex | None:
    """One attempt at each mirror. A wrong digest means wrong bytes, wherever they were changed."""
    place = layer.index
    assert place is not None  # noqa: S101 - the caller has looked
    length = layer.alone_size if layer.alone else place.end - place.offset
    pieces = bytearray()
    found: LoadedIndex | None = None

    def sink(at: int, piece: bytes) -> bool:
        nonlocal found
        # A place that ignores the range sends the blob from its beginning, and one that begins anew begins at `first`.
        if at <= first:
            pieces.clear()
        pieces.extend(piece[max(0, first - at) :])
        if len(pieces) < length:
            return True
        section = bytes(pieces[:length])
        try:
            found = _parsed(section_of(section, place) if layer.alone else section, place)
        except ImageError as e:
            raise CorruptError(str(e)) from None
        return False

    blob.read_range(first, length, sink, cancel=cancel, begun=lambda: False)
    return found


def keep_index(path: str, section: bytes) -> None:
    """Put the index into the entry at `path`, for when the registry cannot be reached. Raises OSError.

    It is believed only with its digest, so it need not survive a crash as a whole.
    """
    name = os.path.join(path, NAME)
    if _kept(name) != section:
        atomic_write(name, section)


def has_its_hashes(entry: Entry, key: str) -> bool | None:
    """Tell whether the bytes of a complete entry still have the hashes of the index beside them.

    None where that cannot be told: the hashes are those of compressed chunks, or the index is not there. Raises
    OSError.
    """
    algorithm, _, digits = key.partition(":")
    section = _kept(os.path.join(entry.path, NAME))
    place = chunk_index.IndexLocation(
        entry.size, entry.size + len(section), f"{algorithm.partition('+')[0]}:{digits}", False
    )
    try:
        found = _parsed(section, place)
    except ImageError:
        return None
    return None if found is None else _agree(entry, found.chunks)


def agrees(entry: Entry, hashes: bytes) -> bool | None:
    """As has_its_hashes(), of those that were made when the entry was hashed."""
    found = own_index(hashes, entry.size)
    return None if found is None else _agree(entry, found)


def own_index(hashes: bytes, size: int) -> chunk_index.ChunkIndex | None:
    """Return the index that was made of an entry's `size` bytes when they were hashed; None where there is none.

    Its digest has been compared (cache/mark.py).
    """
    digest = f"sha256:{sha256(hashes).hexdigest()}"
    try:
        found = (
            chunk_index.parse(hashes, chunk_index.IndexLocation(size, size + len(hashes), digest, False))
            if hashes
            else None
        )
    except ImageError:
        return None
    return found if found is not None and found.size == size else None


def _agree(entry: Entry, chunks: chunk_index.ChunkIndex) -> bool | None:
    if chunks.size != entry.size:
        return None
    for number in range(len(chunks)):
        chunk = chunks.chunk(number)
        try:
            chunk.verify(os.pread(entry.data_fd, chunk.length, chunk.start))
        except ImageError:
            return False
    return True
