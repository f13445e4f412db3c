"""Where images are and where they go: a repository at a registry, an OCI layout directory, an archive.

location.py says how they are written. An Origin and a Target are for one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from .document import Document
from .download import download
from .errors import UsageError
from .files import regular
from .layermaker import Made
from .layout import Layout
from .location import Kind, Location
from .manifest import Descriptor, digest_as, parse
from .options import OCIOptions
from .reference import Reference
from .request import Content
from .source import connect, get_answer
from .upload import Uploads, scopes

Progress = Callable[[int], None]  # bytes so far
Trace = Callable[[str], None] | None


class Origin(Protocol):
    """Where an image comes from. `name` is for people."""

    name: str

    def root(self) -> Document: ...

    def document(self, entry: Descriptor) -> Document:
        """Return a document. Raises ImageError where it is another one than its descriptor says, RegistryError."""
        ...

    def blob(self, entry: Descriptor, directory: str | None, progress: Progress) -> AbstractContextManager[str]:
        """Give the path of a file with the blob, which has been verified.

        It may lie in `directory`, and may be moved from there. None: wherever there is room.
        """
        ...

    def close(self) -> None: ...


class Receiver(Protocol):
    """Where an image goes that is made here: its blobs first, then its documents, the root of all last.

    `name` is for messages.
    """

    name: str

    def add_file(self, digest: str, path: str, progress: Progress) -> str:
        """Store the blob in the file `path`. Returns what happened: "pushed", "written" or "already there"."""
        ...

    def add_layer(self, made: Made, progress: Progress) -> str:
        """Store a layer that has been made."""
        ...

    def add_document(self, document: Document, *, root: bool) -> None: ...

    def close(self) -> None: ...


class Target(Receiver, Protocol):
    """Where an image goes, also as it is."""

    def add(self, entry: Descriptor, origin: Origin, progress: Progress) -> str:
        """Store a blob of `origin`. Returns what happened, in a word or two."""
        ...

    def has_document(self, document: Document) -> bool:
        """Whether a document, and all that it names, is there."""
        ...


class RegistryOrigin:
    """An image at a registry. Owns its connections until close()."""

    def __init__(self, text: str, options: OCIOptions, trace: Trace = None) -> None:
        self.reference, self.registry, self._transport = connect(text, options, trace=trace)
        self.name = str(self.reference)
        self._timeout = options.timeout

    def root(self) -> Document:
        return self._get(self.reference.manifest_reference)

    def document(self, entry: Descriptor) -> Document:
        return self._get(entry.digest)

    def _get(self, what: str) -> Document:
        answer = get_answer(self.registry, what, timeout=self._timeout)
        return Document(answer.body, parse(answer.body, answer.media_type).media_type, digest_as(what, answer.body))

    @contextlib.contextmanager
    def blob(self, entry: Descriptor, directory: str | None, progress: Progress) -> Iterator[str]:
        descriptor, path = tempfile.mkstemp(prefix="pyerofs-", dir=directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                download(self.registry.blob(entry.digest, entry.size), file, progress)
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def close(self) -> None:
        self._transport.close()


class LayoutOrigin:
    """An image in a layout directory."""

    def __init__(self, location: Location) -> None:
        self.name = str(location)
        self._layout = Layout(location.path)
        self._tag = location.name

    def root(self) -> Document:
        return self._layout.document(self._layout.find(self._tag))

    def document(self, entry: Descriptor) -> Document:
        return self._layout.document(entry)

    @contextlib.contextmanager
    def blob(self, entry: Descriptor, directory: str | None, progress: Progress) -> Iterator[str]:
        path = self._layout.check(entry.digest, entry.size)
        progress(entry.size)
        yield path

    def close(self) -> None:
        pass


class RegistryTarget:
    """A repository at a registry. `origin`: where its images will come from, if that is known."""

    def __init__(self, text: str, options: OCIOptions, trace: Trace = None, origin: Origin | None = None) -> None:
        reference = Reference.parse(text)
        if reference.digest:
            raise UsageError(f"{text!r}: where an image goes is named by a tag, not by a digest")
        self._neighbour = ""  # the repository at the same registry that has the blobs already
        if isinstance(origin, RegistryOrigin) and origin.reference.host == reference.host:
            self._neighbour = origin.reference.repository
        wanted = scopes(reference.repository, self._neighbour)
        self.reference, registry, self._transport = connect(text, options, trace=trace, scopes=wanted)
        self.name = str(self.reference)
        self._uploads = Uploads(registry)

    def add(self, entry: Descriptor, origin: Origin, progress: Progress) -> str:
        if self._uploads.has_blob(entry.digest):
            return "already there"
        if self._neighbour and self._uploads.mount_blob(entry.digest, self._neighbour):
            return "mounted"
        with origin.blob(entry, None, progress) as path:
            return self._send(entry.digest, path, progress)

    def add_file(self, digest: str, path: str, progress: Progress) -> str:
        return "already there" if self._uploads.has_blob(digest) else self._send(digest, path, progress)

    def _send(self, digest: str, path: str, progress: Progress) -> str:
        with open(path, "rb", opener=regular) as file:
            descriptor = file.fileno()
            size = os.fstat(descriptor).st_size
            content = Content(size, lambda offset, count: os.pread(descriptor, count, offset))
            self._uploads.put_blob(digest, content, progress)
        return "pushed"

    def add_layer(self, made: Made, progress: Progress) -> str:
        return self.add_file(made.digest, made.path, progress)

    def has_document(self, document: Document) -> bool:
        return self._uploads.has_manifest(document.digest, document.media_type)

    def add_document(self, document: Document, *, root: bool) -> None:
        tag = self.reference.tag if root else None
        self._uploads.put_manifest(tag or document.digest, document.body, document.media_type)

    def close(self) -> None:
        self._transport.close()


class LayoutTarget:
    """A layout directory, made if need be."""

    def __init__(self, location: Location) -> None:
        if location.name and location.name.startswith("@"):
            raise UsageError(f"{location}: where an image goes is named by a tag or a reference")
        self.name = str(location)
        self._layout = Layout.create(location.path)
        self._tag = location.name

    def add(self, entry: Descriptor, origin: Origin, progress: Progress) -> str:
        if self._layout.has(entry.digest, entry.size):
            return "already there"
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

    def add_layer(self, made: Made, progress: Progress) -> str:
        return self.add_file(made.digest, made.path, progress)

    def has_document(self, document: Document) -> bool:
        return False  # a manifest that is here says nothing of its blobs

    def add_document(self, document: Document, *, root: bool) -> None:
        self._layout.add_document(document)
        if root:
            self._layout.tag(document, self._tag)

    def close(self) -> None:
        pass


def _layout_origin(location: Location, options: OCIOptions, trace: Trace) -> Origin:
    return LayoutOrigin(location)


def _registry_origin(location: Location, options: OCIOptions, trace: Trace) -> Origin:
    return RegistryOrigin(location.path, options, trace)


def _layout_archive(location: Location, options: OCIOptions, trace: Trace) -> Origin:
    from .ociarchive import LayoutArchive

    return LayoutArchive(location)


def _docker_archive(location: Location, options: OCIOptions, trace: Trace) -> Origin:
    from .dockerarchive import ArchiveOrigin

    return ArchiveOrigin(location)


_ORIGINS: dict[Kind, Callable[[Location, OCIOptions, Trace], Origin]] = {
    "registry": _registry_origin,
    "oci": _layout_origin,
    "oci-archive": _layout_archive,
    "docker-archive": _docker_archive,
}


def open_origin(location: Location, options: OCIOptions, trace: Trace = None) -> Origin:
    """Open where an image comes from. Raises UsageError, ImageError."""
    return _ORIGINS[location.kind](location, options, trace)


def open_target(location: Location, options: OCIOptions, trace: Trace = None, origin: Origin | None = None) -> Target:
    """Open where an image goes. Raises UsageError, ImageError."""
    if location.kind == "oci":
        return LayoutTarget(location)
    if location.kind == "registry":
        return RegistryTarget(location.path, options, trace, origin)
    raise UsageError(f"{location}: an archive is read only; write an image to a registry or to oci:DIR[:NAME]")
