"""Open or plan the layers of an image at a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.options import ReadOptions
from ..erofs.compose import PlannedLayer
from ..erofs.layer import Layer
from ..erofs.native import choose_layer
from ..oci.manifest import Manifest
from ..oci.platforms import Platform
from .base import Source
from .connect import connect
from .plan import plan_from_manifest, reopen_known
from .resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..cache.manifests import ManifestCache
    from .base import Opener


def _never() -> bool:
    return False


def _ignore(_: str) -> None:
    pass


def open_layer(
    text: str,
    options: ReadOptions,
    *,
    trace: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] = _never,
    kept: ManifestCache | None = None,
    log: Callable[[str], None] = _ignore,
) -> Source:
    """Resolve a reference to the layer that the options name. Raises UsageError, RegistryError, ImageError.

    `trace` gets a line for each exchange with the registry, then and later, `log` one for the user. `kept`: manifests
    of earlier times, for when the registry cannot be reached.
    """

    def choose(manifest: Manifest) -> tuple[PlannedLayer, ...]:
        return (PlannedLayer(*choose_layer(manifest, options.layer, options.blob)),)

    [(_, open_)] = plan_layers(text, options, choose, trace=trace, cancel=cancel, kept=kept)
    return open_(log)


def plan_layers(
    text: str,
    options: ReadOptions,
    choose: Callable[[Manifest], tuple[PlannedLayer, ...]] | None = None,
    *,
    trace: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] = _never,
    kept: ManifestCache | None = None,
) -> list[tuple[PlannedLayer, Opener]]:
    """Resolve a reference to every part of what the options name, a layer or the whole image, each with its opener.

    None is opened yet: its function does that, from any thread, and raises RegistryError, ImageError, UnavailableError.
    They share their connections; the first that is closed closes those that are idle, and the others make new ones.
    """
    reference, registry, transport = connect(text, options, trace=trace)
    try:
        image = resolve(registry, reference, options.platform or Platform.host(), cancel, options.timeout, kept)
        return plan_from_manifest(image, registry, transport, options, choose, cancel=cancel)
    except BaseException:
        transport.close()
        raise


def reopen_layers(
    text: str,
    layers: Sequence[tuple[Layer, int]],
    options: ReadOptions,
    *,
    trace: Callable[[str], None] | None = None,
) -> list[Opener]:
    """Return openers of layers that have been opened before, each with the number of bytes that its source had.

    What is in the cache is not asked for. Raises UsageError.
    """
    reference, registry, transport = connect(text, options, trace=trace)
    return reopen_known(str(reference), layers, registry, transport, options)
