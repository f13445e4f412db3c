"""Read images: from a repository at a registry, an OCI layout directory, or a docker archive.

A reader is for one thread at a time, unless it says something else.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from ..config.options import ReadOptions
from ..context import NOBODY, Context
from ..oci.layout import Layout
from ..oci.location import Kind, Location
from ..oci.manifest import Descriptor, digest_as, parse
from ..oci.raw_manifest import RawManifest
from ..oci.reference import Reference
from ..registry.download import download
from .connect import connect
from .resolve import get_answer

CONNECTIONS = 8  # requests for blobs at the same time
Progress = Callable[[int], None]  # bytes so far


class ImageReader(Protocol):
    """Where an image comes from. `name` is for messages."""

    name: str

    def root(self) -> RawManifest: ...

    def document(self, entry: Descriptor) -> RawManifest:
        """Return a document. Raises ImageError where it is another one than its descriptor says, RegistryError."""
        ...

    def blob(self, entry: Descriptor, directory: str | None, progress: Progress) -> AbstractContextManager[str]:
        """Give the path of a file with the blob, which has been verified.

        It may lie in `directory`, and may be moved from there. None: wherever there is room.
        """
        ...

    def close(self) -> None: ...


class RegistryReader:
    """An image at a registry. Owns its connections until close()."""

    def __init__(self, reference: Reference, options: ReadOptions, context: Context = NOBODY) -> None:
        self.reference = reference
        self.registry, self._transport = connect(reference, options, context)
        self.name = str(self.reference)
        self._context = context
        self._timeout = options.timeout
        self._slots = threading.Semaphore(CONNECTIONS)
        self._over = False

    def root(self) -> RawManifest:
        return self._get(self.reference.manifest_reference)

    def document(self, entry: Descriptor) -> RawManifest:
        return self._get(entry.digest)

    def _get(self, what: str) -> RawManifest:
        answer = get_answer(self.registry, what, self._context, self._timeout)
        return RawManifest(answer.body, parse(answer.body, answer.media_type).media_type, digest_as(what, answer.body))

    @contextlib.contextmanager
    def blob(self, entry: Descriptor, directory: str | None, progress: Progress) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="pyerofs-", dir=directory) as own:
            path = f"{own}/blob"
            self.download(entry, path, progress)
            yield path

    def give_up(self) -> None:
        """End the downloads that other threads are about, with InterruptedError."""
        self._over = True

    def _is_over(self) -> bool:
        return self._over

    def download(self, entry: Descriptor, path: str, progress: Progress) -> None:
        """Make `path` the blob, going on where an earlier call with this path broke off. For any thread.

        Raises RegistryError, ImageError, OSError, InterruptedError after give_up().
        """
        download(self.registry.blob(entry.digest, entry.size), path, progress, self._is_over, self._slots)

    def close(self) -> None:
        self._transport.close()


class LayoutReader:
    """An image in a layout directory."""

    def __init__(self, location: Location) -> None:
        self.name = str(location)
        self._layout = Layout(location.path)
        self._tag = location.name

    def root(self) -> RawManifest:
        return self._layout.document(self._layout.find(self._tag))

    def document(self, entry: Descriptor) -> RawManifest:
        return self._layout.document(entry)

    @contextlib.contextmanager
    def blob(self, entry: Descriptor, directory: str | None, progress: Progress) -> Iterator[str]:
        path = self._layout.check(entry.digest, entry.size)
        progress(entry.size)
        yield path

    def path(self, entry: Descriptor) -> str:
        """Return where a blob is, for any thread that compares its digest itself. Raises ImageError, UsageError."""
        return self._layout.find_blob(entry.digest, entry.size)

    def close(self) -> None:
        pass


def _layout(location: Location, options: ReadOptions, context: Context) -> ImageReader:
    return LayoutReader(location)


def _registry(location: Location, options: ReadOptions, context: Context) -> ImageReader:
    return RegistryReader(location.reference, options, context)


def _layout_archive(location: Location, options: ReadOptions, context: Context) -> ImageReader:
    from .layout_archive import LayoutArchive

    return LayoutArchive(location)


def _docker_archive(location: Location, options: ReadOptions, context: Context) -> ImageReader:
    from ..oci.docker_archive import ArchiveReader

    return ArchiveReader(location)


_READERS: dict[Kind, Callable[[Location, ReadOptions, Context], ImageReader]] = {
    "registry": _registry,
    "oci": _layout,
    "oci-archive": _layout_archive,
    "docker-archive": _docker_archive,
}


def open_reader(location: Location, options: ReadOptions, context: Context = NOBODY) -> ImageReader:
    """Open where an image comes from. Raises UsageError, ImageError."""
    return _READERS[location.kind](location, options, context)
