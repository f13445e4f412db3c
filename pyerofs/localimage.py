"""Images wherever they are: at a registry, in an OCI layout directory, in an archive.

What source.py does for the first, and the same for the others, whose blobs are in files of this machine.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from . import source
from .errors import ImageError, UsageError
from .localblob import FileBlobs, LostBlobs, NoConnections
from .location import STDIN, Location
from .manifest import Descriptor, Index, Manifest, choose_layer, parse
from .ordinary import OrdinaryImage
from .platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .compose import Part
    from .document import Document
    from .layer import Layer
    from .localblob import Readable
    from .location import Kind
    from .manifests import Manifests
    from .options import OCIOptions
    from .source import Image, Opener, Source


def find_parts(
    location: Location,
    options: OCIOptions,
    choose: Callable[[Manifest], tuple[Part, ...]] | None = None,
    *,
    trace: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] = lambda: False,
    kept: Manifests | None = None,
) -> list[tuple[Part, Opener]]:
    """As source.find_parts(). Raises OrdinaryImage where there is no EROFS layer."""
    if not location.is_local:
        return source.find_parts(location.path, options, choose, trace=trace, cancel=cancel, kept=kept)
    image = resolve(location, options)
    if location.kind == "docker-archive":  # which has nothing but tar archives in it
        raise OrdinaryImage(image.name, image.digest, image.manifest)
    return source.parts_of(image, _Blobs(location), NoConnections(), options, choose, cancel=cancel)


def open_image(
    location: Location,
    options: OCIOptions,
    *,
    trace: Callable[[str], None] | None = None,
    kept: Manifests | None = None,
    log: Callable[[str], None],
) -> Source:
    """As source.open_image()."""

    def choose(manifest: Manifest) -> tuple[Part, ...]:
        from .compose import Part

        return (Part(*choose_layer(manifest, options.layer, options.blob)),)

    [(_, open_)] = find_parts(location, options, choose, trace=trace, kept=kept)
    return open_(log)


def known_layers(
    location: Location,
    layers: Sequence[tuple[Layer, int]],
    options: OCIOptions,
    name: str = "",
    *,
    trace: Callable[[str], None] | None = None,
) -> list[Opener]:
    """Return openers of layers that have been opened before, as source.known_layers() does.

    Also of a converted image, which is in the cache and nowhere else. `name`: what the image was called.
    """
    name = name or str(location)
    if any(layer.converted for layer, _ in layers):
        return source.reopened(name, layers, LostBlobs(name), NoConnections(), with_index(options))
    if location.is_local:
        return source.reopened(name, layers, _Blobs(location), NoConnections(), options)
    return source.known_layers(location.path, layers, options, trace=trace)


def with_index(options: OCIOptions) -> OCIOptions:
    """For the layers of a converted image, which have no place in the cache but the one that goes by their indexes."""
    return replace(options, verify="auto") if options.verify == "none" else options


def resolve(location: Location, options: OCIOptions) -> Image:
    """Resolve an image in a file or directory, as source.resolve() does at a registry.

    Raises UsageError, ImageError.
    """
    if location.path == STDIN:
        raise UsageError(f"{location}: what comes through a pipe can be read only once: save it to a file first")
    from .place import open_origin  # deferred: a mount from a registry is to start without it

    origin = open_origin(location, options)

    def get(digest: str) -> tuple[str, Manifest | Index]:
        return digest, _parsed(origin.document(Descriptor("", digest, 0)))

    try:
        root = origin.root()  # whose errors name the place
        platform = options.platform or Platform.host()
        try:
            return source.follow(str(location), (root.digest, _parsed(root)), get, platform)
        except ImageError as error:
            raise ImageError(f"{location}: {error}") from None
    finally:
        origin.close()


def _parsed(document: Document) -> Manifest | Index:
    return parse(document.body, document.media_type or None)


class _Blobs:
    """The blobs of a local image, whose place is looked up when one is asked for. Any thread."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self.giver = giver_of(location)

    def blob(self, digest: str, size: int, log: Callable[[str], None] | None = None) -> Readable:
        """Return a blob. Raises UsageError, ImageError."""
        return _BLOBS[self._location.kind](self._location, digest, size)


def giver_of(location: Location) -> str:
    """As Blobs has it, of what is at this place."""
    return f"{location.kind}:{os.path.realpath(location.path)}"


def _of_layout(location: Location, digest: str, size: int) -> Readable:
    from .layout import Layout

    return FileBlobs(Layout(location.path).blob_path).blob(digest, size)


def _of_archive(location: Location, digest: str, size: int) -> Readable:
    from .ociarchive import LayoutArchive

    archive = LayoutArchive(location)
    try:
        return archive.file_blob(digest, size)
    finally:
        archive.close()


_BLOBS: dict[Kind, Callable[[Location, str, int], Readable]] = {"oci": _of_layout, "oci-archive": _of_archive}
