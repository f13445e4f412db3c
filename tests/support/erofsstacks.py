"""Layers of tar archives as EROFS images by pyerofs.erofs: each alone, and all in one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from pyerofs.erofs.data_map import DataMap
from pyerofs.erofs.layer_tree import LayerTree
from pyerofs.erofs.laying import Laying, apply_layer
from pyerofs.erofs.tree import Tree
from pyerofs.erofs.writer import Device, Metadata, write_metadata
from pyerofs.tar.reader import Tar
from tests.support.erofsreader import Reader
from tests.support.ordinary import Member
from tests.support.tarballs import archive
from tests.support.trees import Entry


class Data:
    """A device in memory."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def land(self, offset: int, data: bytes | bytearray) -> None:
        assert offset % 4096 == len(data) % 4096 == 0
        assert offset <= len(self.bytes)
        self.bytes[offset : offset + len(data)] = data


def whole(metadata: Metadata, data: bytes | bytearray) -> bytes:
    """The image with its data."""
    image = bytes(metadata.data) + bytes(data)[: metadata.size - len(metadata.data)]
    return image.ljust(metadata.size, b"\0")


class Stack:
    """Layers, each applied to those before. `images`: of each alone, base first (unless `merged`)."""

    def __init__(self, *, merged: bool = False) -> None:
        self.layers = LayerTree()
        self.contents = DataMap(separate=not merged)
        self.devices: list[Data] = []
        self.sizes: list[int] = []
        self.images: list[bytes] = []
        self._merged = merged

    def add(self, *members: Member) -> dict[str, Entry]:
        """What the layer has by itself."""
        return self.add_tar(archive(*members))

    def add_tar(self, tar: bytes) -> dict[str, Entry]:
        number = len(self.devices)
        data = Data()
        laying = Laying(self.contents, number, data.land)

        def take(content: int, size: int) -> int:
            return laying.copy(
                content, size, lambda device, at, length: bytes(self.devices[device].bytes[at : at + length])
            )

        layer = self.layers.begin(None if self._merged else take)
        apply_layer(Tar(io.BytesIO(tar).read), layer, laying)
        self.devices.append(data)
        self.sizes.append(laying.size)
        found = {}
        if not self._merged:
            made = write_metadata(self.layers.tree, layer.standalone(), self.contents, Device(number, laying.size))
            self.images.append(whole(made, data.bytes))
            found = Reader(self.images[-1]).entries()
        layer.merge()
        return found

    def metadata(self) -> Metadata:
        """Of all layers in one, the first one's data behind it, the others' as devices."""
        first, *rest = (Device(number, size, b"%d" % number) for number, size in enumerate(self.sizes))
        return write_metadata(self.layers.tree, self.layers.root, self.contents, first, rest)

    def image(self) -> tuple[bytes, list[bytes]]:
        """The same, whole, and the devices."""
        made = self.metadata()
        devices = [bytes(data.bytes[:size]) for data, size in zip(self.devices, self.sizes, strict=True)]
        return whole(made, devices[0]), devices[1:]

    def entries(self) -> dict[str, Entry]:
        """Of all layers in one."""
        return Reader(*self.image()).entries()


def single(tree: Tree, root: int, contents: DataMap, data: bytes = b"") -> bytes:
    """An image of one device, number 0."""
    return whole(write_metadata(tree, root, contents, Device(0, len(data))), data)


def write(directory: Path, image: bytes, devices: Sequence[bytes] = ()) -> tuple[Path, list[Path]]:
    """The image and its devices as files."""
    directory.mkdir(exist_ok=True)
    paths = [directory / "image.erofs", *(directory / f"device{number}" for number in range(len(devices)))]
    for path, data in zip(paths, (image, *devices), strict=True):
        path.write_bytes(data)
    return paths[0], paths[1:]
