"""The primary device of a merged image: its metadata, and the contents of its small layers behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..erofs.merge import LayerContent, MergedImage, merge_layers

if TYPE_CHECKING:
    from ..erofs.device_file import DeviceFile
    from .kept_layers import KeptLayer

_PIECE = 1 << 20  # bytes


def lay_primary(
    layers: Sequence[KeptLayer], device: DeviceFile, read: Callable[[KeptLayer, int, int], bytes]
) -> MergedImage:
    """Lay the primary device of the merged layers, the base first, into `device`; the same layers give the same bytes.

    `read(layer, offset, length)` gives a small layer's contents. Raises ImageError for what the layers cannot make
    together, OSError, and what `read` raises.
    """
    merged = merge_layers([LayerContent(layer.digest, layer.table) for layer in layers])
    device.land(0, bytes(merged.metadata.data))
    at = len(merged.metadata.data)
    for number in merged.primary:
        layer = layers[number]
        for offset in range(0, layer.table.device_size, _PIECE):
            data = read(layer, offset, min(_PIECE, layer.table.device_size - offset))
            device.land(at, data)
            at += len(data)
    device.settle(merged.metadata.size)
    device.finish()
    return merged
