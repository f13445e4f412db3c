"""A layer that is read once: what is kept of it makes the same tree as the archive, alone and with others."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pyerofs.core import crc32c
from pyerofs.erofs import chunk_index
from pyerofs.erofs.chunk_index import IndexLocation
from pyerofs.erofs.device_file import DeviceFile
from pyerofs.erofs.layer_pass import read_layer
from pyerofs.erofs.layer_table import LayerTable
from pyerofs.erofs.merge import SMALL_MAX, LayerContent, merge_layers
from pyerofs.errors import ImageError
from pyerofs.tar.allowance import Allowance
from pyerofs.tar.reader import Tar
from tests.support.erofsreader import Reader
from tests.support.erofsstacks import Stack
from tests.support.ordinary import LAYERS, Member, file
from tests.support.tarballs import archive


class Stream:
    """A blob in memory; `finished` when its end has been asked for."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.finished = False

    def read(self, count: int, /) -> bytes:
        return self._file.read(min(count, 1000))

    def finish(self) -> None:
        self.finished = True


Read = Callable[[bytes], tuple[LayerTable, DeviceFile]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(tar: bytes) -> tuple[LayerTable, DeviceFile]:
        device = DeviceFile(str(tmp_path))
        stream = Stream(gzip.compress(tar))
        table = read_layer(stream, device, f"sha256:{hashlib.sha256(tar).hexdigest()}")
        assert stream.finished
        return table, device

    return read


def merged(layers: list[tuple[LayerTable, DeviceFile]]) -> Reader:
    """The image of these layers, as a reader sees it."""
    found = merge_layers([LayerContent(f"sha256:{number:064}", table) for number, (table, _) in enumerate(layers)])
    content = {number: device.read(0, device.size) for number, (_, device) in enumerate(layers)}
    image = bytes(found.metadata.data) + b"".join(content[number] for number in found.primary)
    return Reader(image, [content[number] for number in found.devices])


def test_a_table_survives_being_stored(read: Read) -> None:
    for layer in LAYERS:
        table, _ = read(archive(*layer))
        table.facts["what"] = "ever"
        again = LayerTable.from_bytes(table.to_bytes())
        assert again.to_bytes() == table.to_bytes()
        assert (len(again), again.device_size, again.facts) == (len(table), table.device_size, table.facts)
        expected = list(Tar(io.BytesIO(archive(*layer)).read))
        contents = again.contents.__class__()
        assert [entry for entry, _ in again.entries(contents, 0)] == expected


@pytest.mark.parametrize("at", [0, 10, 200, -1, -33])
def test_a_table_that_is_damaged_is_none(read: Read, at: int) -> None:
    data = bytearray(read(archive(file("a", b"x" * 5000)))[0].to_bytes())
    data[at] ^= 1
    with pytest.raises(ValueError):
        LayerTable.from_bytes(bytes(data))
    with pytest.raises(ValueError):
        LayerTable.from_bytes(b"")


def test_kept_layers_make_the_tree_that_their_archives_make(read: Read) -> None:
    stack = Stack(merged=True)
    kept = []
    for layer in LAYERS:
        stack.add(*layer)
        table, device = read(archive(*layer))
        kept.append((LayerTable.from_bytes(table.to_bytes()), device))
    assert merged(kept).entries() == stack.entries()


def test_a_large_layer_is_a_device_and_small_ones_are_in_the_primary(read: Read) -> None:
    chance = random.Random(3)
    large = chance.randbytes(SMALL_MAX + 1)
    layers: list[list[Member]] = [
        [file("a", b"a" * 5000)],
        [file("b", large)],
        [file("c", b"c" * 5000), file("d", b"")],
    ]
    found = merge_layers(
        [LayerContent(f"sha256:{number:064}", read(archive(*layer))[0]) for number, layer in enumerate(layers)]
    )
    assert (found.primary, found.devices) == ((0, 2), (1,))
    entries = merged([read(archive(*layer)) for layer in layers]).entries()
    assert {name: entry.size for name, entry in entries.items() if name in "abcd"} == {
        "a": 5000, "b": len(large), "c": 5000, "d": 0,
    }  # fmt: skip


def test_a_layer_that_an_image_has_twice_has_one_device(read: Read) -> None:
    table, _ = read(archive(file("a", random.Random(1).randbytes(SMALL_MAX + 1))))
    found = merge_layers([LayerContent("sha256:" + "1" * 64, table)] * 2)
    assert (found.primary, found.devices) == ((), (0,))


def test_a_merged_image_keeps_no_bytes_of_files_that_are_gone(read: Read) -> None:
    """Neither of those that an upper layer deletes, nor of those that it replaces."""
    chance = random.Random(7)
    gone, kept, new = (chance.randbytes(size) for size in (300_000, 9_000, 50_000))
    layers: list[list[Member]] = [
        [file("gone", gone), file("kept", kept), file("replaced", gone[:70_000])],
        [file("more", gone[5:100_000]), file("last", kept[::-1])],
        [file(".wh.gone"), file("replaced", new), file(".wh.more")],
    ]
    parts = [read(archive(*layer)) for layer in layers]
    contents = [LayerContent(f"sha256:{number:064}", table) for number, (table, _) in enumerate(parts)]
    found = merge_layers(contents, small_max=None)
    assert found.kept is not None
    all_of_them = b"".join(parts[number][1].read(0, parts[number][1].size) for number in found.primary)
    left = b"".join(all_of_them[start : start + length] for start, length in found.kept)
    assert gone[:4096] not in left and gone[4096:8192] not in left
    assert len(left) == sum(-(-len(data) // 4096) * 4096 for data in (kept, kept, new))
    stack = Stack(merged=True)
    for layer in layers:
        stack.add(*layer)
    assert Reader(bytes(found.metadata.data) + left, []).entries() == stack.entries()


def test_what_is_written_in_vain_leaves_nothing_in_the_hashes(read: Read) -> None:
    """A large content that proves to be there already has landed by then; what comes next takes its place."""
    chance = random.Random(11)
    large, last = chance.randbytes(3 << 20), chance.randbytes(700_000)
    _, device = read(archive(file("a", large), file("b", large), file("c", last)))
    data = large + last + bytes(-len(last) % 4096)
    assert device.read(0, device.size + 1) == data
    about = chunk_index.describe(device.size, device.index)
    where = IndexLocation(device.size, device.size + len(device.index), about[chunk_index.DIGEST], False)
    index = chunk_index.parse(device.index, where)
    assert index is not None
    for number in range(len(index)):
        chunk = index.chunk(number)
        chunk.verify(data[chunk.start : chunk.start + chunk.length])
    assert list(device.sums) == [crc32c(data[at : at + 4096]) for at in range(0, len(data), 4096)]


def test_another_diff_id_is_refused(tmp_path: Path) -> None:
    tar = archive(file("a", b"x"))
    with DeviceFile(str(tmp_path)) as device, pytest.raises(ImageError, match="another content"):
        read_layer(Stream(tar), device, "sha256:" + "0" * 64)
    assert not list(tmp_path.iterdir())


def test_sha512_is_as_good(tmp_path: Path) -> None:
    tar = archive(file("a", b"x"))
    with DeviceFile(str(tmp_path)) as device:
        assert len(read_layer(Stream(tar), device, f"sha512:{hashlib.sha512(tar).hexdigest()}")) == 1


def test_what_is_larger_than_it_may_be_is_refused(tmp_path: Path) -> None:
    tar = archive(file("a", bytes(1 << 20)))
    with DeviceFile(str(tmp_path)) as device, pytest.raises(ImageError, match=r"oci\.unpacked_max"):
        read_layer(Stream(gzip.compress(tar)), device, "sha256:" + "0" * 64, Allowance(1, 1 << 19))


def test_a_device_has_an_index_of_its_bytes(read: Read) -> None:
    content = random.Random(2).randbytes(1_000_000)
    _, device = read(archive(file("a", content), file("b", content), file("c", content[:-1])))
    assert device.size == 2 * -(-1_000_000 // 4096) * 4096  # equal contents are there once
    where = chunk_index.IndexLocation(device.size, device.size + len(device.index), "", False)
    digest = f"sha256:{hashlib.sha256(device.index).hexdigest()}"
    index = chunk_index.parse(device.index, where._replace(digest=digest))
    assert index is not None
    for number in range(len(index)):
        chunk = index.chunk(number)
        chunk.verify(device.read(chunk.start, chunk.length))
    assert len(device.sums) == device.size // 4096
