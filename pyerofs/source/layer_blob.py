"""The blob of a layer that is read once, from its first byte to its last, wherever the image is."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ..ahead import cores
from .blob_stream import BlobStream
from .blobs import FileBlob
from .image_reader import LayoutReader, RegistryReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..oci.manifest import Descriptor
    from .blobs import BlobReader
    from .image_reader import ImageReader


def streams_of(reader: ImageReader, fetched: int) -> int:
    """Return how many threads may stream layers of the reader at once; `fetched`: what is good over a network."""
    if isinstance(reader, RegistryReader):
        return fetched
    return cores() if isinstance(reader, LayoutReader) else 1


@contextlib.contextmanager
def stream_layer(
    reader: ImageReader,
    layer: Descriptor,
    directory: str,
    timeout: float,
    *,
    progress: Callable[[int], None] = lambda _: None,
    cancel: Callable[[], bool] = lambda: False,
) -> Iterator[BlobStream]:
    """Give the layer's blob as a stream; `directory`: where there is room for what has to be taken out of an archive.

    `timeout`: seconds in which something has to come; `progress` gets the bytes so far. Raises RegistryError,
    ImageError, UnavailableError.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(reader, RegistryReader):
            blob: BlobReader = reader.registry.blob(layer.digest, layer.size)
        elif isinstance(reader, LayoutReader):
            blob = FileBlob(reader.path(layer), layer.digest, layer.size)
        else:
            path = stack.enter_context(reader.blob(layer, directory, lambda _: None))
            blob = FileBlob(path, layer.digest, layer.size)
        yield stack.enter_context(BlobStream(blob, timeout, progress=progress, cancel=cancel))
