"""Layers that the destination has from earlier conversions: by their annotations, so that they are not made again.

Whoever may push there is believed about it: they could change the tag as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..erofs.layer import CONTENT
from ..errors import PyerofsError
from ..oci.manifest import INDEX_DEPTH, Descriptor, Manifest, is_attestation, parse
from ..oci.raw_manifest import descriptor
from ..oci.reference import is_digest
from .layer import SOURCE_CHAIN, SOURCE_RECIPE, BuiltLayer, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..oci.raw_manifest import RawManifest
    from ..source.image_reader import ImageReader

_MANIFESTS_MAX = 64


class MadeLayers:
    """The layers of the image that the destination has under its name. For one thread."""

    def __init__(self, found: list[Descriptor] | None = None) -> None:
        self._found = {
            (layer.annotations.get(SOURCE_CHAIN), layer.annotations.get(SOURCE_RECIPE), layer.media_type): layer
            for layer in found or ()
        }

    def find(self, chain: str, recipe: Recipe) -> BuiltLayer | None:
        """Return the layer that was made of this by this recipe, without a file; None where there is none."""
        layer = self._found.get((chain, str(recipe), recipe.media_type))
        if layer is None:
            return None
        diff_id = layer.annotations.get(CONTENT, "") if recipe.level else layer.digest
        if not is_digest(diff_id):
            return None
        about = descriptor(layer.media_type, layer.digest, layer.size, layer.annotations)
        return BuiltLayer("", layer.digest, diff_id, layer.size, about)


def find_made(open_destination: Callable[[], ImageReader]) -> MadeLayers:
    """Look at what the destination has; what cannot be read is not there."""
    found: list[Descriptor] = []
    try:
        reader = open_destination()
        try:
            _collect(reader, reader.root(), INDEX_DEPTH, found, [_MANIFESTS_MAX])
        finally:
            reader.close()
    except PyerofsError:
        pass  # nothing is there yet, or only those may read who may not write: what was found is good
    return MadeLayers(found)


def _collect(reader: ImageReader, document: RawManifest, depth: int, found: list[Descriptor], left: list[int]) -> None:
    parsed = parse(document.body, document.media_type)
    if isinstance(parsed, Manifest):
        found += [layer for layer in parsed.layers if SOURCE_CHAIN in layer.annotations]
        return
    for entry in parsed.manifests:
        if depth and left[0] and not is_attestation(entry):
            left[0] -= 1
            _collect(reader, reader.document(entry), depth - 1, found, left)
