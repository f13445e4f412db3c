"""Images wherever they are: at a registry, in an OCI layout directory, in a docker archive. What source.py does for the
first, and the same for the others, whose blobs are files of this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import source
from .errors import ImageError
from .localblob import FileBlobs, LostBlobs, NoConnections
from .manifest import Descriptor, Index, Manifest, choose_layer, parse
from .ordinary import OrdinaryImage
from .places import Place, is_place
from .platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .compose import Part
    from .document import Document
    from .layer import Layer
    from .localblob import Blobs
    from .manifests import Manifests
    from .options import OCIOptions
    from .source import Image, Opener, Source


def find_parts(
    text: str,
    options: OCIOptions,
    choose: Callable[[Manifest], tuple[Part, ...]] | None = None,
    *,
    trace: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] = lambda: False,
    kept: Manifests | None = None,
) -> list[tuple[Part, Opener]]:
    """As source.find_parts(). Raises OrdinaryImage where there is no EROFS layer."""
    if not is_place(text):
        return source.find_parts(text, options, choose, trace=trace, cancel=cancel, kept=kept)
    place = Place.parse(text)
    image = resolve(place, options)
    if place.kind == "docker-archive":  # which has nothing but tar archives in it
        raise OrdinaryImage(image.name, image.digest, image.manifest)
    return source.parts_of(image, _blobs(place), NoConnections(), options, choose, cancel=cancel)


def open_image(
    text: str,
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

    [(_, open_)] = find_parts(text, options, choose, trace=trace, kept=kept)
    return open_(log)


def known_layers(text: str, layers: Sequence[tuple[Layer, int]], options: OCIOptions) -> list[Opener]:
    """As source.known_layers(); of a converted image too, which is in the cache and nowhere else."""
    if any(layer.converted for layer, _ in layers):
        return source.reopened(text, layers, LostBlobs(text), NoConnections(), with_index(options))
    if is_place(text):
        return source.reopened(text, layers, _blobs(Place.parse(text)), NoConnections(), options)
    return source.known_layers(text, layers, options)


def with_index(options: OCIOptions) -> OCIOptions:
    """For the layers of a converted image, which have no place in the cache but the one that goes by their indexes."""
    return replace(options, verify="auto") if options.verify == "none" else options


def resolve(place: Place, options: OCIOptions) -> Image:
    """What source.resolve() does, for an image in a file or directory. Raises UsageError, ImageError."""
    root, document = _documents(place)

    def get(digest: str) -> tuple[str, Manifest | Index]:
        return digest, _parsed(document(Descriptor("", digest, 0)))

    try:
        return source.follow(str(place), (root.digest, _parsed(root)), get, options.platform or Platform.host())
    except ImageError as error:
        raise ImageError(f"{place}: {error}") from None


def _parsed(document: Document) -> Manifest | Index:
    return parse(document.body, document.media_type or None)


def _documents(place: Place) -> tuple[Document, Callable[[Descriptor], Document]]:
    """The root, and what gives the documents that it names."""
    if place.kind == "oci":
        from .layout import Layout

        layout = Layout(place.path)
        return layout.document(layout.find(place.tag)), layout.document
    from .dockerarchive import ArchiveOrigin

    archive = ArchiveOrigin(place.path, place.tag)
    try:
        return archive.root(), archive.document
    finally:
        archive.close()


def _blobs(place: Place) -> Blobs:
    from .layout import Layout

    return FileBlobs(Layout(place.path).blob_path)
