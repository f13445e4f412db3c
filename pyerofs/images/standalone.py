"""The layers of an image one by one, each an EROFS image that stands alone for overlayfs: as engines want them.

A layer that adds a name to a file of a lower layer takes the contents along, behind its own.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..erofs.data_map import DataMap
from ..erofs.layer_tree import LayerTree
from ..erofs.laying import Laying
from ..erofs.writer import Device, write_metadata
from ..errors import ImageError
from .layer import ImageSource

if TYPE_CHECKING:
    from ..erofs.layer_table import LayerTable
    from ..erofs.layer_tree import AppliedLayer
    from ..erofs.storable_xattrs import LeftOut


class StandaloneLayers:
    """Applies layers, the base first: begin(), image() unless nobody wants it, merge(), for each. For one thread.

    `read(number, offset, length)` gives contents of the layer `number`; `work`: a directory for what layers take along.
    """

    def __init__(self, read: Callable[[int, int, int], bytes], work: str) -> None:
        self._read = read
        self._work = work
        self._tree = LayerTree()
        self._contents = DataMap(separate=True)
        self._number = -1
        self._table: LayerTable | None = None
        self._layer: AppliedLayer | None = None
        self._taken: _Taken | None = None

    @property
    def left_out(self) -> Counter[LeftOut]:
        """How many xattrs could not be stored."""
        return self._tree.left_out

    def begin(self, table: LayerTable) -> None:
        """Apply the next layer's entries. Raises ImageError, OSError, and what `read` raises."""
        self._number += 1
        self._table = table
        self._taken = _Taken(self._work, table.device_size)
        laying = self._taken.laying = Laying(self._contents, self._number, self._taken.land)
        laying.size = table.device_size
        self._layer = self._tree.begin(lambda content, size: laying.copy(content, size, self._lower))
        for entry, content in table.entries(self._contents, self._number):
            self._layer.add(entry, content)

    def _lower(self, number: int, offset: int, length: int) -> bytes:
        data = self._read(number, offset, length)
        if len(data) != length:
            raise ImageError(f"contents of the layer {number + 1} are cut short")
        return data

    def image(self) -> ImageSource:
        """Return the layer as an image, valid until merge(). Raises ImageError."""
        assert self._layer is not None and self._table is not None and self._taken is not None  # noqa: S101
        size = self._taken.laying.size
        number = self._number
        metadata = write_metadata(self._tree.tree, self._layer.standalone(), self._contents, Device(number, size))
        return image_source(
            metadata.data,
            (self._table.device_size, lambda offset, length: self._read(number, offset, length)),
            (size - self._table.device_size, self._taken.read),
        )

    def merge(self) -> None:
        """Put the layer under those that come."""
        assert self._layer is not None and self._taken is not None  # noqa: S101
        self._layer.merge()
        self._taken.close()

    def close(self) -> None:
        if self._taken is not None:
            self._taken.close()


def image_source(metadata: bytearray, *parts: tuple[int, Callable[[int, int], bytes]]) -> ImageSource:
    """Return an image: its metadata first, then its contents."""
    head = bytes(metadata)
    return ImageSource([(len(head), lambda offset, length: head[offset : offset + length]), *parts])


class _Taken:
    """What a layer takes along of lower ones: `base` bytes on its device come before. Its file has no name."""

    laying: Laying

    def __init__(self, work: str, base: int) -> None:
        self._base = base
        self._file = tempfile.TemporaryFile(dir=work, buffering=0)  # noqa: SIM115 - until close()

    def land(self, offset: int, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._file.fileno(), view, offset - self._base)
            view, offset = view[count:], offset + count

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        self._file.close()
