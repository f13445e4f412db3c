"""The layers of an image one by one, each an EROFS image that stands alone for overlayfs: as engines want them.

A layer that adds a name to a file of a lower layer takes the contents along, behind its own.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..erofs.arrange import arrange
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
    from ..erofs.trace import Trace

    Part = tuple[int, Callable[[int, int], bytes]]  # how many bytes, and what gives them


_METADATA_HOT = 4 << 20  # bytes


class StandaloneLayers:
    """Applies layers, the base first: begin(), image() unless nobody wants it, merge(), for each. For one thread.

    `read(number, offset, length)` gives contents of the layer `number`; `work`: a directory for what layers take along.
    `trace`: of a start, by which the data are arranged; `shows`: whether a layer has what is seen at a path in the end.
    """

    def __init__(
        self,
        read: Callable[[int, int, int], bytes],
        work: str,
        trace: Trace | None = None,
        shows: Callable[[int, bytes], bool] = lambda number, path: True,
    ) -> None:
        self._trace, self._shows = trace, shows
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
        root, contents, tree = self._layer.standalone(), self._contents, self._tree.tree
        parts: tuple[tuple[int, int], ...] = ((0, size),)
        hot = 0
        if self._trace is not None:
            contents, parts, hot = arrange(
                tree, root, contents, number, size, self._trace, lambda path: self._shows(number, path)
            )
        metadata = write_metadata(tree, root, contents, Device(number, size))
        own = self._table.device_size
        data: list[Part] = [
            (own, lambda offset, length: self._read(number, offset, length)),
            (size - own, self._taken.read),
        ]
        return image_source(metadata.data, data, parts, hot)

    def merge(self) -> None:
        """Put the layer under those that come."""
        assert self._layer is not None and self._taken is not None  # noqa: S101
        self._layer.merge()
        self._taken.close()

    def close(self) -> None:
        if self._taken is not None:
            self._taken.close()


def image_source(
    metadata: bytearray, data: Sequence[Part], parts: Sequence[tuple[int, int]] | None = None, hot: int = 0
) -> ImageSource:
    """Return an image: its metadata first, then its contents.

    `parts`: where they are taken from, as offsets and lengths in `data` one after another, which is their order else;
    `hot`: bytes of them that a start reads. Metadata count as that too, unless there are very many.
    """
    head = bytes(metadata)
    hot += len(head) if hot or len(head) <= _METADATA_HOT else 0
    chosen: list[Part] = [(len(head), lambda offset, length: head[offset : offset + length])]
    for offset, length in [(0, sum(size for size, _ in data))] if parts is None else parts:
        chosen += _cut(data, offset, length)
    return ImageSource(chosen, hot)


def _cut(data: Sequence[Part], offset: int, length: int) -> Iterator[Part]:
    """Yield the parts that make up a range of the data."""

    def shifted(read: Callable[[int, int], bytes], shift: int) -> Callable[[int, int], bytes]:
        return lambda offset, length: read(offset + shift, length)

    begin = 0
    for size, read in data:
        first, end = max(offset, begin), min(offset + length, begin + size)
        if first < end:
            yield end - first, shifted(read, first - begin)
        begin += size


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
