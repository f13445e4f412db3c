"""Write images: to a repository at a registry, or to an OCI layout directory.

A writer is for one thread at a time, but for add(), which any number of threads may call.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from ..config.options import ReadOptions
from ..context import NOBODY, Context
from ..errors import ImageError, NotFoundError, UsageError
from ..files import regular
from ..http.request import Content
from ..oci.layout import Layout
from ..oci.location import Kind, Location
from ..oci.manifest import OCI_INDEX, Descriptor, Manifest, parse
from ..oci.raw_manifest import RawManifest
from ..oci.soci import referrers_tag, referrers_with
from ..registry.upload import Uploads, scopes
from ..source.connect import connect
from ..source.image_reader import ImageReader, Progress, RegistryReader
from .layer import BuiltLayer


class ImageWriter(Protocol):
    """Where an image goes that is made here: its blobs first, then its documents, the root of all last.

    `name` is for messages.
    """

    name: str

    def add_file(self, digest: str, path: str, progress: Progress) -> str:
        """Store the blob in the file `path`. Returns what happened: "pushed", "written" or "already there"."""
        ...

    def add_layer(self, made: BuiltLayer, progress: Progress) -> str:
        """Store a layer that has been made."""
        ...

    def has_blob(self, digest: str, size: int) -> bool:
        """Tell whether a blob of `size` bytes is there."""
        ...

    def scratch(self, directory: str) -> AbstractContextManager[str]:
        """Give a directory for what add_layer() will get: `directory`, or one from where it need not be copied."""
        ...

    def add_document(self, document: RawManifest, *, root: bool) -> None: ...

    def close(self) -> None: ...


class CopyWriter(ImageWriter, Protocol):
    """Where an image goes, also as it is."""

    def add(self, entry: Descriptor, origin: ImageReader, progress: Progress) -> str:
        """Store a blob of `origin`. Returns what happened, in a word or two."""
        ...

    def has_document(self, document: RawManifest) -> bool:
        """Whether a document, and all that it names, is there."""
        ...


class RegistryWriter:
    """A repository at a registry. `origin`: where its images will come from, if that is known."""

    def __init__(
        self, location: Location, options: ReadOptions, context: Context = NOBODY, origin: ImageReader | None = None
    ) -> None:
        self.reference = reference = location.reference
        if reference.digest:
            raise UsageError(f"{location.path!r}: the destination of an image is named by a tag, not by a digest")
        self._neighbour = ""  # the repository at the same registry that has the blobs already
        if isinstance(origin, RegistryReader) and origin.reference.host == reference.host:
            self._neighbour = origin.reference.repository
        wanted = scopes(reference.repository, self._neighbour)
        registry, self._transport = connect(reference, options, context, scopes=wanted)
        self.name = str(self.reference)
        self._over = False
        self._registry = registry
        self._uploads = Uploads(registry, lambda: self._over)

    def add(self, entry: Descriptor, origin: ImageReader, progress: Progress) -> str:
        if self._uploads.has_blob(entry.digest):
            return "already there"
        if self._neighbour and self._uploads.mount_blob(entry.digest, self._neighbour):
            return "mounted"
        with origin.blob(entry, None, progress) as path:
            return self._send(entry.digest, path, progress)

    def give_up(self) -> None:
        """End the uploads that other threads are about."""
        self._over = True

    def add_file(self, digest: str, path: str, progress: Progress) -> str:
        return "already there" if self._uploads.has_blob(digest) else self._send(digest, path, progress)

    def _send(self, digest: str, path: str, progress: Progress) -> str:
        with open(path, "rb", opener=regular) as file:
            descriptor = file.fileno()
            size = os.fstat(descriptor).st_size
            content = Content(size, lambda offset, count: os.pread(descriptor, count, offset))
            self._uploads.put_blob(digest, content, progress)
        return "pushed"

    def add_layer(self, made: BuiltLayer, progress: Progress) -> str:
        return self.add_file(made.digest, made.path, progress)

    def has_blob(self, digest: str, size: int) -> bool:
        return self._uploads.has_blob(digest)

    @contextlib.contextmanager
    def scratch(self, directory: str) -> Iterator[str]:
        yield directory

    def has_document(self, document: RawManifest) -> bool:
        return self._uploads.has_manifest(document.digest, document.media_type)

    def add_document(self, document: RawManifest, *, root: bool) -> None:
        tag = self.reference.tag if root else None
        self._uploads.put_manifest(tag or document.digest, document.body, document.media_type)

    def add_referrer(self, index: RawManifest, subject: str) -> None:
        """Write a SOCI index, which refers to the manifest with the digest `subject`, so that it is found by that.

        Where the registry does not see to this, its list of what refers to the manifest is read and written again:
        who does so in the same moment may be lost.
        """
        if self._uploads.put_manifest(index.digest, index.body, index.media_type):
            return
        tag = referrers_tag(subject)
        try:
            answer = self._registry.get_manifest(tag, (OCI_INDEX,))
        except NotFoundError:
            answer = None
        listed = parse(answer.body, answer.media_type) if answer else None
        if isinstance(listed, Manifest):
            raise ImageError(f"{self.name}: the tag {tag} is to list what refers to the image, and is an image itself")
        wanted = referrers_with(listed, answer.body if answer else b"", index)
        if wanted is not None:
            self._uploads.put_manifest(tag, wanted.body, wanted.media_type)

    def close(self) -> None:
        self._transport.close()


class LayoutWriter:
    """A layout directory, made if need be."""

    def __init__(self, location: Location) -> None:
        if location.name and location.name.startswith("@"):
            raise UsageError(f"{location}: the destination of an image is named by a tag or a reference")
        self.name = str(location)
        self._layout = Layout.create(location.path)
        self._tag = location.name

    def add(self, entry: Descriptor, origin: ImageReader, progress: Progress) -> str:
        if self._layout.has(entry.digest, entry.size):
            return "already there"
        if isinstance(origin, RegistryReader):
            with self._layout.partial(entry.digest) as path:
                origin.download(entry, path, progress)
                self._layout.add_blob(entry.digest, path)
        else:
            with self._layout.scratch() as directory, origin.blob(entry, directory, progress) as path:
                self._layout.add_blob(entry.digest, path)
        return "pulled"

    def add_file(self, digest: str, path: str, progress: Progress) -> str:
        size = os.stat(path).st_size
        if self._layout.has(digest, size):
            return "already there"
        self._layout.add_blob(digest, path)
        progress(size)
        return "written"

    def add_layer(self, made: BuiltLayer, progress: Progress) -> str:
        return self.add_file(made.digest, made.path, progress)

    def has_blob(self, digest: str, size: int) -> bool:
        return self._layout.has(digest, size)

    def scratch(self, directory: str) -> AbstractContextManager[str]:
        return self._layout.scratch()

    def has_document(self, document: RawManifest) -> bool:
        return False  # a manifest that is here says nothing of its blobs

    def add_document(self, document: RawManifest, *, root: bool) -> None:
        self._layout.add_document(document)
        if root:
            self._layout.tag(document, self._tag)

    def close(self) -> None:
        pass


def open_writer(
    location: Location, options: ReadOptions, context: Context = NOBODY, origin: ImageReader | None = None
) -> CopyWriter:
    """Open where an image goes. Raises UsageError, ImageError."""
    writer = _WRITERS.get(location.kind)
    if writer is None:
        raise UsageError(f"{location}: an archive is read only; write an image to a registry or to oci:DIR[:NAME]")
    return writer(location, options, context, origin)


def _layout(location: Location, options: ReadOptions, context: Context, origin: ImageReader | None) -> CopyWriter:
    return LayoutWriter(location)


_WRITERS: dict[Kind, Callable[[Location, ReadOptions, Context, ImageReader | None], CopyWriter]] = {
    "registry": RegistryWriter,
    "oci": _layout,
}
