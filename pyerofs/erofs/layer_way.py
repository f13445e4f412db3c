"""The judge of how the tar layers of an image are read: lazily by a table of contents, or whole, once. Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..tar.toc.formats import toc_format
from ..tar.toc.model import TocError

if TYPE_CHECKING:
    from ..oci.manifest import Descriptor

# Bytes of a blob. Up to the first it takes as long to fetch the table of contents as all of it. Each layer that is read
# lazily is a device: beyond DEVICES of them only those that are above the second are worth one.
LAZY_MIN, LAZY_ALWAYS = 1 << 20, 8 << 20
DEVICES = 8


class LayerWay(NamedTuple):
    """How a layer is read.

    `format` of the table of contents that its descriptor speaks of, "" for none. `lazy`: it is read by that; else `why`
    it is read whole, a clause about "it".
    """

    format: str
    lazy: bool
    why: str = ""


def judge_layers(layers: Sequence[Descriptor]) -> list[LayerWay]:
    """Judge the layers of one image by what the manifest says of them.

    What a table of contents itself says may still lead to another way: map_layer() tells.
    """
    found = [_by_format(layer) for layer in layers]
    large = sorted((layer.size for layer, way in zip(layers, found, strict=True) if way.lazy), reverse=True)
    least = large[DEVICES] + 1 if len(large) > DEVICES else 0
    return [_by_size(layer, way, min(least, LAZY_ALWAYS)) for layer, way in zip(layers, found, strict=True)]


def _by_format(layer: Descriptor) -> LayerWay:
    try:
        found = toc_format(layer.media_type, layer.annotations)
    except TocError as error:
        return LayerWay("", False, f"its table of contents cannot be used: {error}")
    return LayerWay(found, True) if found else LayerWay("", False, "it has no table of contents")


def _by_size(layer: Descriptor, way: LayerWay, least: int) -> LayerWay:
    if way.lazy and layer.size < LAZY_MIN:
        return way._replace(lazy=False, why="it is small")
    if way.lazy and layer.size < least:
        return way._replace(lazy=False, why="it is small, and the image has many layers")
    return way
