"""Which sources make up an image, each to be opened later: from its manifest, or from layers known before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..config.options import ReadOptions
from ..erofs.compose import PlannedLayer, compose
from ..erofs.layer import Layer, describe
from ..erofs.native import native_layers
from ..errors import ImageError
from ..oci.manifest import Manifest
from .base import Source
from .kinds import open_source
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
    converted: bool = False,
) -> list[tuple[PlannedLayer, Opener]]:
    """Return the parts as plan_layers() does, of an image whose blobs `blobs` has.

    Raises ImageError, NotErofsError; the caller then still owns the connections.
    """
    manifest = image.manifest
    if not native_layers(manifest) and options.layer is None and options.blob is None:
        from ..erofs.foreign import NotErofsError

        raise NotErofsError(image.name, image.digest, manifest)
    try:
        parts = choose(manifest) if choose else compose(manifest, options.layer, options.blob)
        layers = [describe(manifest, part.layer, use_index=options.verify != "none") for part in parts]
    except ImageError as e:
        hint = "; an ordinary image is mounted whole, without oci.layer and oci.blob"
        raise ImageError(f"{image.name}: {e}{'' if native_layers(manifest) else hint}") from None

    def opener(part: PlannedLayer, layer: Layer) -> Opener:
        def open_(context: Context) -> Source:
            try:
                return open_source(image.name, layer, blobs, connections, options, context)
            except BaseException as e:
                connections.close()
                if isinstance(e, ImageError) and part.role == "device" and layer.compressed and not layer.index:
                    raise ImageError(f"{e}; a compressed device needs a chunk index, which tells its size") from None
                raise

        return open_

    return [
        (part, opener(part, replace(layer, converted=converted))) for part, layer in zip(parts, layers, strict=True)
    ]


def reopen_known(
    name: str, layers: Sequence[tuple[Layer, int]], blobs: BlobStore, connections: Connections, options: ReadOptions
) -> list[Opener]:
    """As reopen_layers(), of an image whose blobs `blobs` has."""

    def opener(layer: Layer, size: int) -> Opener:
        def open_(context: Context) -> Source:
            try:
                source = open_source(name, layer, blobs, connections, options, context, size=size)
                if source.size != size:
                    raise ImageError(f"{name}: it has {source.size} bytes now instead of {size}: mount it again")
                return source
            except BaseException:
                connections.close()
                raise

        return open_

    return [opener(layer, size) for layer, size in layers]
