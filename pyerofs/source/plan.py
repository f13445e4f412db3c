"""Which sources make up an image, each to be opened later: from its manifest, or from layers known before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..config.options import ReadOptions
from ..erofs.compose import PlannedLayer, compose, first_layers
from ..erofs.layer import Layer, describe, describe_converted
from ..erofs.native import native_layers
from ..errors import ImageError
from ..oci.manifest import Manifest
from .base import Source
from .kinds import open_source
from .original_blobs import OriginalBlobs
from .resolve import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..context import Context
    from .base import Opener
    from .blobs import BlobStore, Connections


def with_index(options: ReadOptions) -> ReadOptions:
    """Return the options for a converted image, whose devices have no place in the cache but that of their indexes."""
    return replace(options, verify="auto") if options.verify == "none" else options


def plan_from_manifest(
    image: Image,
    blobs: BlobStore,
    connections: Connections,
    options: ReadOptions,
    choose: Callable[[Manifest], tuple[PlannedLayer, ...]] | None = None,
    *,
    originals: OriginalBlobs | None = None,
) -> list[tuple[PlannedLayer, Opener]]:
    """Return the parts as plan_layers() does, of an image whose blobs `blobs` has.

    `originals`: it is a converted image, of which these have the layers that are read by chunk maps. Raises ImageError,
    NotErofsError; the caller then still owns the connections.
    """
    manifest = image.manifest
    if options.layers is not None:
        manifest = _first_layers(image, options.layers)
    if not native_layers(manifest) and options.layer is None and options.blob is None:
        from ..erofs.foreign import NotErofsError

        raise NotErofsError(image.name, image.digest, manifest)
    try:
        parts = choose(manifest) if choose else compose(manifest, options.layer, options.blob)
        if originals is not None:
            layers = [describe_converted(manifest, part.layer) for part in parts]
        else:
            layers = [describe(manifest, part.layer, use_index=options.verify != "none") for part in parts]
    except ImageError as e:
        hint = "; an ordinary image is mounted whole, without oci.layer and oci.blob"
        raise ImageError(f"{image.name}: {e}{'' if native_layers(manifest) else hint}") from None

    def opener(part: PlannedLayer, layer: Layer) -> Opener:
        where = _where(layer, blobs, connections, originals)

        def open_(context: Context) -> Source:
            try:
                return open_source(image.name, layer, *where, options, context)
            except BaseException as e:
                where.connections.close()
                if isinstance(e, ImageError) and part.role == "device" and layer.compressed and not layer.index:
                    raise ImageError(f"{e}; a compressed device needs a chunk index, which tells its size") from None
                raise

        return open_

    return [(part, opener(part, layer)) for part, layer in zip(parts, layers, strict=True)]


def _where(layer: Layer, blobs: BlobStore, connections: Connections, originals: OriginalBlobs | None) -> OriginalBlobs:
    return originals if layer.map and originals is not None else OriginalBlobs(blobs, connections)


def _first_layers(image: Image, count: int) -> Manifest:
    if not native_layers(image.manifest):
        raise ImageError(f"{image.name}: oci.layers={count}: an ordinary image is mounted whole")
    try:
        return first_layers(image.manifest, count)
    except ImageError as e:
        raise ImageError(f"{image.name}: oci.layers={count}: {e}") from None


def reopen_known(
    name: str,
    layers: Sequence[tuple[Layer, int]],
    blobs: BlobStore,
    connections: Connections,
    options: ReadOptions,
    originals: OriginalBlobs | None = None,
) -> list[Opener]:
    """As reopen_layers(), of an image whose blobs `blobs` has, or `originals` as plan_from_manifest() has it."""

    def opener(layer: Layer, size: int) -> Opener:
        where = _where(layer, blobs, connections, originals)

        def open_(context: Context) -> Source:
            try:
                source = open_source(name, layer, *where, options, context, size=size)
                if source.size != size:
                    raise ImageError(f"{name}: it has {source.size} bytes now instead of {size}: mount it again")
                return source
            except BaseException:
                where.connections.close()
                raise

        return open_

    return [opener(layer, size) for layer, size in layers]
