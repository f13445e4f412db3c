"""The blob of a layer that is read once, from its first byte to its last, wherever the image is."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from .blob_stream import BlobStream
from .blobs import FileBlob
from .image_reader import RegistryReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..oci.manifest import Descriptor
    from .blobs import BlobReader
    from .image_reader import ImageReader


def can_share(reader: ImageReader) -> bool:
    """Tell whether several threads may stream layers of the reader at once: they wait for the network then."""
    return isinstance(reader, RegistryReader)


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
        else:
            path = stack.enter_context(reader.blob(layer, directory, lambda _: None))
            blob = FileBlob(path, layer.digest, layer.size)
        yield stack.enter_context(BlobStream(blob, timeout, progress=progress, cancel=cancel))
