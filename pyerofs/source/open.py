"""Images wherever they are: at a registry, in an OCI layout directory, in an archive.

What source/base.py does for the first, and the same for the others, whose blobs are in files of this machine.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..erofs.foreign import NotErofsError
from ..erofs.native import choose_layer
from ..errors import ImageError, UsageError
from ..oci.location import STDIN, Location
from ..oci.manifest import Descriptor, Index, Manifest, parse
from ..oci.platforms import Platform
from . import from_registry, plan
from . import resolve as source_resolve
from .blobs import FileBlobs, NoConnections

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..cache.manifests import ManifestCache
    from ..config.options import ReadOptions
    from ..erofs.compose import PlannedLayer
    from ..erofs.layer import Layer
    from ..oci.location import Kind
    from ..oci.raw_manifest import RawManifest
    from .base import Opener, Source
    from .blobs import BlobReader
    from .resolve import Image


def plan_layers(
    location: Location,
    options: ReadOptions,
    choose: Callable[[Manifest], tuple[PlannedLayer, ...]] | None = None,
    *,
    trace: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] = lambda: False,
    kept: ManifestCache | None = None,
) -> list[tuple[PlannedLayer, Opener]]:
    """As from_registry.plan_layers(). Raises NotErofsError where there is no EROFS layer."""
    if not location.is_local:
        return from_registry.plan_layers(location.path, options, choose, trace=trace, cancel=cancel, kept=kept)
    image = resolve(location, options)
    if location.kind == "docker-archive":  # which has nothing but tar archives in it
        raise NotErofsError(image.name, image.digest, image.manifest)
    return plan.plan_from_manifest(image, _Blobs(location), NoConnections(), options, choose, cancel=cancel)


def open_layer(
    location: Location,
    options: ReadOptions,
    *,
    trace: Callable[[str], None] | None = None,
    kept: ManifestCache | None = None,
    log: Callable[[str], None],
) -> Source:
    """As from_registry.open_layer()."""

    def choose(manifest: Manifest) -> tuple[PlannedLayer, ...]:
        from ..erofs.compose import PlannedLayer

        return (PlannedLayer(*choose_layer(manifest, options.layer, options.blob)),)

    [(_, open_)] = plan_layers(location, options, choose, trace=trace, kept=kept)
    return open_(log)


def reopen_layers(
    location: Location,
    layers: Sequence[tuple[Layer, int]],
    options: ReadOptions,
    name: str = "",
    *,
    trace: Callable[[str], None] | None = None,
) -> list[Opener]:
    """Return openers of layers that have been opened before, as from_registry.reopen_layers() does.

    Also of a converted image, which is in the cache and nowhere else. `name`: what the image was called.
    """
    name = name or str(location)
    if any(layer.converted for layer, _ in layers):
        from .converted_cache import remade_blobs

        blobs = remade_blobs(location, name, options)
        return plan.reopen_known(name, layers, blobs, blobs, plan.with_index(options))
    if location.is_local:
        return plan.reopen_known(name, layers, _Blobs(location), NoConnections(), options)
    return from_registry.reopen_layers(location.path, layers, options, trace=trace)


def resolve(location: Location, options: ReadOptions) -> Image:
    """Resolve an image in a file or directory, as resolve.resolve() does at a registry.

    Raises UsageError, ImageError.
    """
    if location.path == STDIN:
        raise UsageError(f"{location}: what comes through a pipe can be read only once: save it to a file first")
    from .image_reader import open_reader  # deferred: a mount from a registry is to start without it

    origin = open_reader(location, options)

    def get(digest: str) -> tuple[str, Manifest | Index]:
        return digest, _parsed(origin.document(Descriptor("", digest, 0)))

    try:
        root = origin.root()  # whose errors name the place
        platform = options.platform or Platform.host()
        try:
            return source_resolve.follow(str(location), (root.digest, _parsed(root)), get, platform)
        except ImageError as error:
            raise ImageError(f"{location}: {error}") from None
    finally:
        origin.close()


def _parsed(document: RawManifest) -> Manifest | Index:
    return parse(document.body, document.media_type or None)


class _Blobs:
    """The blobs of a local image, whose place is looked up when one is asked for. Any thread."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self.giver = giver_of(location)

    def blob(self, digest: str, size: int, log: Callable[[str], None] | None = None) -> BlobReader:
        """Return a blob. Raises UsageError, ImageError."""
        return _BLOBS[self._location.kind](self._location, digest, size)


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
