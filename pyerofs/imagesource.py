"""The source of a layer of an image: read as it is, by its chunk index, or as one stream of zstd data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .allowance import Allowance
from .cachepath import chosen_directory
from .errors import ImageError
from .layer import SIZE_MAX, Layer, Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from .localblob import Blobs, Connections, Readable
    from .options import OCIOptions
    from .source import Source

_WITHOUT = "oci.verify=none mounts it without that"


class ImageSource:
    """A raw layer whose bytes nothing vouches for until all of them are there. Thread-safe. Owns the connections."""

    def __init__(
        self,
        name: str,
        layer: int,
        blob: Readable,
        connections: Connections,
        origin: Layer | None = None,
        giver: str = "",
    ):
        self.name = name
        self.digest = blob.digest
        self.size = blob.size
        self.layer = layer
        self.origin = origin or Layer(layer, blob.digest, blob.size)
        self.storage = Storage(self.origin.given_key(giver), shared=self.origin.shared_key(), giver=giver)
        self._blob = blob
        self.connections = connections

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Callable[[int, bytes], bool],
        *,
        whole: Callable[[], None],
        cancel: Callable[[], bool],
    ) -> None:
        self._blob.read_range(offset, length, sink, whole=whole, cancel=cancel)

    def content(self) -> str | None:
        return self.digest

    def complete(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        self.connections.close()


def open_source(
    name: str,
    layer: Layer,
    blobs: Blobs,
    connections: Connections,
    options: OCIOptions,
    *,
    size: int | None = None,
    cancel: Callable[[], bool] = lambda: False,
    log: Callable[[str], None],
) -> Source:
    """Open the source that reads the layer best, as oci.verify allows.

    `size`: of the source, where it is known from an earlier opening. What the index or the beginning of a compressed
    layer has to tell comes from the cache or, with a few tries, from the registry. Raises RegistryError, ImageError,
    SystemFailure; the caller then still owns the connections.
    """
    if layer.size > SIZE_MAX:
        raise ImageError(f"{name}: layer {layer.number} says that it has {layer.size} bytes, more than EROFS can have")
    directory = chosen_directory(options)
    blob = blobs.blob(layer.digest, layer.size, log)
    allowance = Allowance(layer.size, options.unpacked_max)
    blob.directory = directory
    must = options.verify == "require"
    if layer.compressed:
        from .inflate import check

        check()
    if layer.index and (layer.compressed or options.verify != "none"):
        from .indexed import IndexedSource
        from .indexfile import obtain

        found = obtain(layer, blobs, directory, cancel, options.timeout, log)
        if found and (found.chunks.hash_size or (layer.compressed and not must)):
            if not 0 < found.chunks.size <= SIZE_MAX:
                raise ImageError(f"{name}: the chunk index says that the image has {found.chunks.size} bytes")
            if layer.compressed:
                try:
                    allowance.check(found.chunks.size)
                except ImageError as error:
                    raise ImageError(f"{name}: layer {layer.number}: {error}") from None
            return IndexedSource(name, layer, blob, connections, found, blobs.giver)
    if must:
        raise ImageError(f"{name}: layer {layer.number} has no chunk index with hashes to verify it by: {_WITHOUT}")
    if not layer.compressed:
        return ImageSource(name, layer.number, blob, connections, layer, blobs.giver)
    from .sharing import finished_size
    from .zstdstream import StreamSource, storage_of

    if size is None:
        size = finished_size(directory, storage_of(layer, blobs.giver))
    source = StreamSource(name, layer, blob, connections, directory, size, allowance, blobs.giver)
    try:
        source.open(cancel, options.timeout)
    except BaseException:
        source.close()
        raise
    return source
