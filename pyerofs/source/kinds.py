"""Choose the kind of source that reads a layer best, and open it. A new kind is a row of _KINDS, and a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..cache.paths import chosen_directory
from ..erofs.layer import SIZE_MAX, Layer
from ..errors import ImageError
from ..tar.allowance import Allowance
from .raw import RawSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config.options import ReadOptions
    from ..context import Context
    from .base import Source
    from .blobs import BlobReader, BlobStore, Connections


_WITHOUT = "oci.verify=none mounts it without that"


class _Wanted(NamedTuple):
    """A layer that is to be read. `size`: of the source, where it is known from an earlier opening."""

    name: str
    layer: Layer
    blob: BlobReader
    blobs: BlobStore
    connections: Connections
    options: ReadOptions
    context: Context
    directory: str
    allowance: Allowance
    size: int | None

    @property
    def must_verify(self) -> bool:
        return self.options.verify == "require"


def open_source(
    name: str,
    layer: Layer,
    blobs: BlobStore,
    connections: Connections,
    options: ReadOptions,
    context: Context,
    *,
    size: int | None = None,
) -> Source:
    """Open the source that reads the layer best, as oci.verify allows.

    `size`: of the source, where it is known from an earlier opening. What the index or the beginning of a compressed
    layer has to tell comes from the cache or, with a few tries, from the registry. Raises RegistryError, ImageError,
    UnavailableError; the caller then still owns the connections.
    """
    if layer.size > SIZE_MAX:
        raise ImageError(f"{name}: layer {layer.number} says that it has {layer.size} bytes, more than EROFS can have")
    directory = chosen_directory(options)
    blob = blobs.blob(layer.digest, layer.size, context.log)
    blob.directory = directory
    if layer.compressed:
        from ..erofs.zstd import check

        check()
    allowance = Allowance(layer.size, options.unpacked_max)
    wanted = _Wanted(name, layer, blob, blobs, connections, options, context, directory, allowance, size)
    for kind in _KINDS:
        source = kind(wanted)
        if source is not None:
            return source
    raise ImageError(f"{name}: layer {layer.number} has no chunk index with hashes to verify it by: {_WITHOUT}")


def _mapped(wanted: _Wanted) -> Source | None:
    """Read a tar layer by its chunk map, which this machine has made."""
    layer = wanted.layer
    if not layer.map:
        return None
    from .map_file import find_map
    from .mapped import MappedSource

    chunks = find_map(layer, wanted.directory)
    if chunks is None:
        raise ImageError(f"{wanted.name}: what was kept of {layer.digest} is gone from the cache: mount it again")
    if chunks.codec == "zstd":
        from ..erofs.zstd import check

        check()
    return MappedSource(wanted.name, layer, wanted.blob, wanted.connections, chunks)


def _chunked(wanted: _Wanted) -> Source | None:
    """Read it by its chunk index, if it has one that serves."""
    layer, name = wanted.layer, wanted.name
    if not layer.index or not (layer.compressed or wanted.options.verify != "none"):
        return None
    from .chunked import ChunkedSource
    from .index_file import load_index

    index = load_index(layer, wanted.blobs, wanted.directory, wanted.options.timeout, wanted.context)
    if not index or not (index.chunks.hash_size or (layer.compressed and not wanted.must_verify)):
        return None
    if not 0 < index.chunks.size <= SIZE_MAX:
        raise ImageError(f"{name}: the chunk index says that the image has {index.chunks.size} bytes")
    if layer.compressed:
        try:
            wanted.allowance.check(index.chunks.size)
        except ImageError as error:
            raise ImageError(f"{name}: layer {layer.number}: {error}") from None
    return ChunkedSource(name, layer, wanted.blob, wanted.connections, index, wanted.blobs.giver)


def _raw(wanted: _Wanted) -> Source | None:
    """Read it as it is."""
    layer = wanted.layer
    if layer.compressed or wanted.must_verify:
        return None
    return RawSource(wanted.name, layer.number, wanted.blob, wanted.connections, layer, wanted.blobs.giver)


def _stream(wanted: _Wanted) -> Source | None:
    """Read it from its beginning, and decompress it."""
    layer, size = wanted.layer, wanted.size
    if not layer.compressed or wanted.must_verify:
        return None
    from ..cache.sharing import finished_size
    from .zstd_stream import StreamSource, storage_of

    giver = wanted.blobs.giver
    if size is None:
        size = finished_size(wanted.directory, storage_of(layer, giver))
    source = StreamSource(
        wanted.name, layer, wanted.blob, wanted.connections, wanted.directory, size, wanted.allowance, giver
    )
    try:
        source.open(wanted.context.cancelled, wanted.options.timeout)
    except BaseException:
        source.close()
        raise
    return source


# The best first; one that does not fit gives None.
_KINDS: tuple[Callable[[_Wanted], Source | None], ...] = (_mapped, _chunked, _raw, _stream)
