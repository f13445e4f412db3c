"""Images wherever they are: at a registry, in an OCI layout directory, in an archive.

Each kind of place is a row of _KINDS. from_registry.py does the work for the first; the others, whose blobs are in
files of this machine, are below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..context import NOBODY, Context
from ..erofs.foreign import NotErofsError
from ..erofs.native import choose_layer
from ..errors import ImageError, UsageError
from ..oci.location import STDIN, Location
from ..oci.manifest import Descriptor, Index, Manifest, parse
from ..oci.platforms import Platform
from . import from_registry, plan
from . import resolve as source_resolve
from .blobs import NoConnections
from .original_blobs import LocalBlobs, giver_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..cache.manifests import ManifestCache
    from ..config.options import ReadOptions
    from ..erofs.compose import PlannedLayer
    from ..erofs.layer import Layer
    from ..oci.location import Kind
    from ..oci.raw_manifest import RawManifest
    from .base import Opener, Source
    from .resolve import Image

    Layers = Sequence[tuple[Layer, int]]  # each with the bytes that its source had


def plan_layers(
    location: Location,
    options: ReadOptions,
    choose: Callable[[Manifest], tuple[PlannedLayer, ...]] | None = None,
    *,
    context: Context = NOBODY,
    manifests: ManifestCache | None = None,
) -> list[tuple[PlannedLayer, Opener]]:
    """Find every part of what the options name, a layer or the whole image, each with its opener.

    `choose` says which, instead of the options. None is opened yet: its function does that, from any thread, and raises
    RegistryError, ImageError, UnavailableError. `context.trace` is for exchanges with the registry then and later.
    `manifests` of earlier times, for when the registry cannot be reached. Raises UsageError, RegistryError, ImageError,
    NotErofsError where there is no EROFS layer.
    """
    return _KINDS[location.kind].plan(location, options, choose, context, manifests)


def open_layer(
    location: Location,
    options: ReadOptions,
    *,
    context: Context = NOBODY,
    manifests: ManifestCache | None = None,
) -> Source:
    """Open the layer that the options name. Raises as plan_layers() does."""

    def choose(manifest: Manifest) -> tuple[PlannedLayer, ...]:
        from ..erofs.compose import PlannedLayer

        return (PlannedLayer(*choose_layer(manifest, options.layer, options.blob)),)

    [(_, open_)] = plan_layers(location, options, choose, context=context, manifests=manifests)
    return open_(context)


def reopen_layers(
    location: Location,
    layers: Layers,
    options: ReadOptions,
    name: str = "",
    *,
    context: Context = NOBODY,
) -> list[Opener]:
    """Return openers of layers that have been opened before, each with the number of bytes that its source had.

    What is in the cache is not asked for. Also of a converted image, which is in the cache and nowhere else. `name`:
    what the image was called. Raises UsageError.
    """
    name = name or str(location)
    if any(layer.converted for layer, _ in layers):
        from .converted_cache import blobs_of

        blobs = blobs_of(location, name, options, [layer for layer, _ in layers], context)
        return plan.reopen_known(name, layers, blobs.remade, blobs.remade, plan.with_index(options), blobs.originals)
    return _KINDS[location.kind].reopen(location, layers, options, name, context)


def resolve_image(location: Location, options: ReadOptions, context: Context = NOBODY) -> tuple[Image, str]:
    """Return the image for the platform, and who gives it (BlobStore.giver).

    Raises UsageError, RegistryError, ImageError.
    """
    return _KINDS[location.kind].resolve(location, options, context)


def _plan_at_registry(
    location: Location,
    options: ReadOptions,
    choose: Callable[[Manifest], tuple[PlannedLayer, ...]] | None,
    context: Context,
    manifests: ManifestCache | None,
) -> list[tuple[PlannedLayer, Opener]]:
    return from_registry.plan_layers(location.reference, options, choose, context=context, manifests=manifests)


def _plan_in_place(
    location: Location,
    options: ReadOptions,
    choose: Callable[[Manifest], tuple[PlannedLayer, ...]] | None,
    context: Context,
    manifests: ManifestCache | None,
) -> list[tuple[PlannedLayer, Opener]]:
    image = _resolve(location, options)
    return plan.plan_from_manifest(image, LocalBlobs(location), NoConnections(), options, choose)


def _plan_docker_archive(
    location: Location,
    options: ReadOptions,
    choose: Callable[[Manifest], tuple[PlannedLayer, ...]] | None,
    context: Context,
    manifests: ManifestCache | None,
) -> list[tuple[PlannedLayer, Opener]]:
    """Raise NotErofsError: such an archive has nothing but tar archives in it."""
    image = _resolve(location, options)
    raise NotErofsError(image.name, image.digest, image.manifest)


def _reopen_at_registry(
    location: Location, layers: Layers, options: ReadOptions, name: str, context: Context
) -> list[Opener]:
    return from_registry.reopen_layers(location.reference, layers, options, context)


def _reopen_in_place(
    location: Location, layers: Layers, options: ReadOptions, name: str, context: Context
) -> list[Opener]:
    return plan.reopen_known(name, layers, LocalBlobs(location), NoConnections(), options)


def _resolve_at_registry(location: Location, options: ReadOptions, context: Context) -> tuple[Image, str]:
    return from_registry.resolve_image(location.reference, options, context)


def _resolve_in_place(location: Location, options: ReadOptions, context: Context) -> tuple[Image, str]:
    return _resolve(location, options), giver_of(location)


def _resolve(location: Location, options: ReadOptions) -> Image:
    """Follow the index of an image in a file or directory. Raises UsageError, ImageError."""
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


class _Kind(NamedTuple):
    """How images of one kind are planned, opened once more and resolved: as the functions of those names above."""

    plan: Callable[..., list[tuple[PlannedLayer, Opener]]]
    reopen: Callable[[Location, Layers, ReadOptions, str, Context], list[Opener]]
    resolve: Callable[[Location, ReadOptions, Context], tuple[Image, str]]


_KINDS: dict[Kind, _Kind] = {
    "registry": _Kind(_plan_at_registry, _reopen_at_registry, _resolve_at_registry),
    "oci": _Kind(_plan_in_place, _reopen_in_place, _resolve_in_place),
    "oci-archive": _Kind(_plan_in_place, _reopen_in_place, _resolve_in_place),
    "docker-archive": _Kind(_plan_docker_archive, _reopen_in_place, _resolve_in_place),
}
