"""The judge of how the tar layers of an image are read: lazily by a table of contents, or whole, once. Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..tar.toc.formats import toc_format
from ..tar.toc.model import TocError

if TYPE_CHECKING:
    from ..oci.manifest import Descriptor

LAZY_MIN = 1 << 20  # bytes of a blob: up to that it takes as long to fetch the table of contents as all of it


class LayerWay(NamedTuple):
    """How a layer is read.

    `format` of the table of contents that its descriptor speaks of, "" for none or one that cannot be used. `lazy`: its
    contents are fetched when they are read; else `why` they are fetched at once, a clause about "it".
    """

    format: str
    lazy: bool
    why: str = ""


def judge_layers(layers: Sequence[Descriptor]) -> list[LayerWay]:
    """Judge the layers of one image by what the manifest says of them.

    What a table of contents itself says may still lead to another way: map_layer() tells.
    """
    return [_judge(layer) for layer in layers]


def _judge(layer: Descriptor) -> LayerWay:
    try:
        found = toc_format(layer.media_type, layer.annotations)
    except TocError as error:
        return LayerWay("", False, f"its table of contents cannot be used: {error}")
    if not found:
        return LayerWay("", False, "it has no table of contents")
    return LayerWay(found, True) if layer.size >= LAZY_MIN else LayerWay(found, False, "it is small")
