"""Choose the kind of source that reads a layer best, and open it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cache.paths import chosen_directory
from ..erofs.layer import SIZE_MAX, Layer
from ..errors import ImageError
from ..tar.allowance import Allowance
from .raw import RawSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config.options import ReadOptions
    from .base import Source
    from .blobs import BlobStore, Connections


_WITHOUT = "oci.verify=none mounts it without that"


def open_source(
    name: str,
    layer: Layer,
    blobs: BlobStore,
    connections: Connections,
    options: ReadOptions,
    *,
    size: int | None = None,
    cancel: Callable[[], bool] = lambda: False,
    log: Callable[[str], None],
) -> Source:
    """Open the source that reads the layer best, as oci.verify allows.

    `size`: of the source, where it is known from an earlier opening. What the index or the beginning of a compressed
    layer has to tell comes from the cache or, with a few tries, from the registry. Raises RegistryError, ImageError,
    UnavailableError; the caller then still owns the connections.
    """
    if layer.size > SIZE_MAX:
        raise ImageError(f"{name}: layer {layer.number} says that it has {layer.size} bytes, more than EROFS can have")
    directory = chosen_directory(options)
    blob = blobs.blob(layer.digest, layer.size, log)
    allowance = Allowance(layer.size, options.unpacked_max)
    blob.directory = directory
    must = options.verify == "require"
    if layer.compressed:
        from ..erofs.zstd import check

        check()
    if layer.index and (layer.compressed or options.verify != "none"):
        from .chunked import ChunkedSource
        from .index_file import load_index

        found = load_index(layer, blobs, directory, cancel, options.timeout, log)
        if found and (found.chunks.hash_size or (layer.compressed and not must)):
            if not 0 < found.chunks.size <= SIZE_MAX:
                raise ImageError(f"{name}: the chunk index says that the image has {found.chunks.size} bytes")
            if layer.compressed:
                try:
                    allowance.check(found.chunks.size)
                except ImageError as error:
                    raise ImageError(f"{name}: layer {layer.number}: {error}") from None
            return ChunkedSource(name, layer, blob, connections, found, blobs.giver)
    if must:
        raise ImageError(f"{name}: layer {layer.number} has no chunk index with hashes to verify it by: {_WITHOUT}")
    if not layer.compressed:
        return RawSource(name, layer.number, blob, connections, layer, blobs.giver)
    from ..cache.sharing import finished_size
    from .zstd_stream import StreamSource, storage_of

    if size is None:
        size = finished_size(directory, storage_of(layer, blobs.giver))
    source = StreamSource(name, layer, blob, connections, directory, size, allowance, blobs.giver)
    try:
        source.open(cancel, options.timeout)
    except BaseException:
        source.close()
        raise
    return source
