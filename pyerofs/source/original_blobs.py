"""The blobs of an image as it is, wherever it is: at a registry, or in files of this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from ..context import NOBODY, Context
from .blobs import FileBlobs, NoConnections
from .connect import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config.options import ReadOptions
    from ..oci.location import Kind, Location
    from ..registry.range_response import Cancel, Sink
    from .blobs import BlobReader, BlobStore, Connections


class OriginalBlobs(NamedTuple):
    """`blobs` of an image, and the `connections` over which they come, to be closed by who uses them."""

    blobs: BlobStore
    connections: Connections


def original_blobs(location: Location, options: ReadOptions, context: Context = NOBODY) -> OriginalBlobs:
    """Return the blobs of the image at `location`; no request is made. Raises UsageError."""
    if location.kind == "registry":
        return OriginalBlobs(*connect(location.reference, options, context))
    return OriginalBlobs(LocalBlobs(location), NoConnections())


class LocalBlobs:
    """The blobs of a local image, whose place is looked up when one is first read. Any thread."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self.giver = giver_of(location)

    def blob(self, digest: str, size: int, log: Callable[[str], None] | None = None) -> BlobReader:
        return _LocalBlob(self._location, digest, size)


class _LocalBlob:
    """A blob of a local image. That may have gone, while all that is wanted of it is in the cache. Any thread."""

    def __init__(self, location: Location, digest: str, size: int) -> None:
        self.digest = digest
        self.size = size
        self.checked = False
        self.directory: str | None = None
        self._location = location
        self._found: BlobReader | None = None

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Sink,
        *,
        whole: Callable[[], None] | None = None,
        cancel: Cancel | None = None,
        begun: Callable[[], bool] | None = None,
    ) -> int:
        """Give the bytes as FileBlob does. Raises UsageError, ImageError, RegistryError."""
        if self._found is None:
            self._found = _BLOBS[self._location.kind](self._location, self.digest, self.size)
        return self._found.read_range(offset, length, sink, whole=whole, cancel=cancel, begun=begun)


def giver_of(location: Location) -> str:
    """As Blobs has it, of what is at this place."""
    return f"{location.kind}:{os.path.realpath(location.path)}"


def _of_layout(location: Location, digest: str, size: int) -> BlobReader:
    from ..oci.layout import Layout

    return FileBlobs(Layout(location.path).blob_path).blob(digest, size)


def _of_archive(location: Location, digest: str, size: int) -> BlobReader:
    from .layout_archive import LayoutArchive

    archive = LayoutArchive(location)
    try:
        return archive.file_blob(digest, size)
    finally:
        archive.close()


_BLOBS: dict[Kind, Callable[[Location, str, int], BlobReader]] = {"oci": _of_layout, "oci-archive": _of_archive}
