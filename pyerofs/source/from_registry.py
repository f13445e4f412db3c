"""Plan the layers of an image at a registry, or open those that have been open before; look up its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.options import ReadOptions
from ..context import NOBODY, Context
from ..erofs.compose import PlannedLayer
from ..erofs.layer import Layer
from ..oci.manifest import Manifest
from ..oci.platforms import Platform
from .connect import connect
from .plan import plan_from_manifest, reopen_known
from .resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..cache.manifests import ManifestCache
    from ..oci.reference import Reference
    from .base import Opener
    from .resolve import Image


def plan_layers(
    reference: Reference,
    options: ReadOptions,
    choose: Callable[[Manifest], tuple[PlannedLayer, ...]] | None = None,
    *,
    context: Context = NOBODY,
    manifests: ManifestCache | None = None,
) -> list[tuple[PlannedLayer, Opener]]:
    """Resolve a reference to every part of what the options name, a layer or the whole image, each with its opener.

    None is opened yet: its function does that, from any thread, and raises RegistryError, ImageError, UnavailableError.
    They share their connections; the first that is closed closes those that are idle, and the others make new ones.
    """
    registry, transport = connect(reference, options, context)
    try:
        image = resolve(registry, reference, options.platform or Platform.host(), context, options.timeout, manifests)
        return plan_from_manifest(image, registry, transport, options, choose)
    except BaseException:
        transport.close()
        raise


def reopen_layers(
    reference: Reference,
    layers: Sequence[tuple[Layer, int]],
    options: ReadOptions,
    context: Context = NOBODY,
) -> list[Opener]:
    """Return openers of layers that have been opened before, each with the number of bytes that its source had.

    What is in the cache is not asked for. Raises UsageError.
    """
    registry, transport = connect(reference, options, context)
    return reopen_known(str(reference), layers, registry, transport, options)


def resolve_image(reference: Reference, options: ReadOptions, context: Context = NOBODY) -> tuple[Image, str]:
    """Return the image that fits the platform, and who gave it. Raises UsageError, RegistryError, ImageError."""
    registry, transport = connect(reference, options, context)
    try:
        platform = options.platform or Platform.host()
        return resolve(registry, reference, platform, context, options.timeout), registry.giver
    finally:
        transport.close()
