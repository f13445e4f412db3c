"""The layers of an image as one filesystem: its metadata, and which layers' contents lie on which device.

A layer with much content is a device of its own, so that images that share it share its bytes. The contents of small
ones, of which an image may have dozens, lie behind the metadata on the primary device. The same tables give the same
bytes. Pure values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from typing import NamedTuple

from ..errors import ImageError
from .arrange import arrange
from .data_map import DataMap
from .layer_table import LayerTable
from .layer_tree import LayerTree
from .storable_xattrs import LeftOut
from .trace import Trace
from .used import Stretch, keep_used
from .writer import Device, Metadata, write_metadata

SMALL_MAX = 4 << 20  # bytes of content: what is copied for each image that has the layer
_PRIMARY = 0


class LayerContent(NamedTuple):
    """A layer by the digest of its blob, with the table of its entries.

    `apart`: whether its contents lie on a device of their own; None: if they are large. `hidden`: names that are left
    out, as the archive has them.
    """

    digest: str
    table: LayerTable
    apart: bool | None = None
    hidden: Container[bytes] = ()


class MergedImage(NamedTuple):
    """What layers became together.

    `metadata` of the image; `primary`: the layers whose contents follow it on the primary device, in that order;
    `devices`: those that are devices of their own, in the order of the device= options; both by their number, a layer
    that an image has twice by its first. `left_out`: extended attributes that could not be kept, by what they are.
    `kept`: what the primary device has of the primary layers' contents, one behind the other; None: all.
    `parts`: the order in which that lies there, as offsets and lengths in it; `hot`: bytes of their beginning that a
    start reads.
    """

    metadata: Metadata
    primary: tuple[int, ...]
    devices: tuple[int, ...]
    left_out: Counter[LeftOut]
    kept: tuple[Stretch, ...] | None = None
    parts: tuple[tuple[int, int], ...] | None = None
    hot: int = 0


def merge_layers(
    layers: Sequence[LayerContent], small_max: int | None = SMALL_MAX, trace: Trace | None = None
) -> MergedImage:
    """Merge layers, the base first. Raises ImageError for what they cannot make together.

    `small_max`: bytes of content of a layer that lies on the primary device; None: all do, and only what is left of it:
    no bytes of files that later layers delete or replace. `trace`: of a start, by which the primary
    device's data are arranged.
    """
    tree = LayerTree()
    contents = DataMap()
    first: dict[str, int] = {}
    primary: list[int] = []
    devices: list[int] = []
    shift = 0
    for number, (digest, table, apart, hidden) in enumerate(layers):
        of = first.setdefault(digest, number)
        small = small_max is None or table.device_size <= small_max if apart is None else not apart
        layer = tree.begin()
        try:
            for entry, content in table.entries(contents, _PRIMARY if small else of + 1, shift if small else 0):
                if entry.name not in hidden:
                    layer.add(entry, content)
        except ImageError as error:
            raise ImageError(f"layer {digest[:19]}: {error}") from None
        layer.merge()
        if of == number and table.device_size:
            (primary if small else devices).append(number)
            shift += table.device_size if small else 0
    if tree.root < 0:
        raise ImageError("the image has no layers")
    kept = None
    if small_max is None:
        kept = keep_used(tree.tree, tree.root, contents, _PRIMARY)
        shift = sum(stretch.length for stretch in kept)
    parts = None
    hot = 0
    if trace is not None:
        contents, parts, hot = arrange(tree.tree, tree.root, contents, _PRIMARY, shift, trace)
    metadata = write_metadata(
        tree.tree,
        tree.root,
        contents,
        Device(_PRIMARY, shift) if shift else None,
        [
            Device(number + 1, layers[number].table.device_size, layers[number].digest.partition(":")[2][:64].encode())
            for number in devices
        ],
    )
    left = None if kept is None else tuple(kept)
    return MergedImage(metadata, tuple(primary), tuple(devices), tree.left_out, left, parts, hot)
