"""The primary device of a merged image: its metadata, and the contents of its small layers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..erofs.merge import LayerContent, MergedImage, merge_layers
from ..tar.toc.keys import STARGZ_NAMES

if TYPE_CHECKING:
    from ..erofs.device_file import DeviceFile
    from .kept_layers import KeptLayer


def lay_primary(layers: Sequence[KeptLayer], device: DeviceFile) -> MergedImage:
    """Lay the primary device of the merged layers, the base first, into `device`; the same layers give the same bytes.

    Raises ImageError for what the layers cannot make together, and OSError.
    """
    merged = merge_layers(
        [
            LayerContent(
                layer.digest, layer.table, layer.device is not None, STARGZ_NAMES if layer.is_stargz else frozenset()
            )
            for layer in layers
        ]
    )
    device.land(0, bytes(merged.metadata.data))
    at = len(merged.metadata.data)
    for number in merged.primary:
        device.land(at, layers[number].contents)
        at += len(layers[number].contents)
    device.settle(merged.metadata.size)
    device.finish()
    return merged
