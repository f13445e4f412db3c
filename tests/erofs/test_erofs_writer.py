"""The metadata of EROFS images: what is stored in which form, where, what does not fit, the same bytes each time."""

from __future__ import annotations

import os
import stat
import struct
from array import array
from pathlib import Path

import pytest

from pyerofs import core
from pyerofs.erofs import on_disk
from pyerofs.erofs.data_map import HOLE, DataMap, Extent
from pyerofs.erofs.laying import PIECE, Laying
from pyerofs.erofs.superblock import inodes, parse
from pyerofs.erofs.tree import Attributes, Tree
from pyerofs.erofs.writer import Device, write_metadata
from pyerofs.errors import ImageError
from tests.support.erofsreader import Reader
from tests.support.erofsstacks import Data, Stack, single, write
from tests.support.ordinary import LAYERS, check_layer
from tests.support.tarballs import info

TIME = 1_600_000_000_000_000_000
BLOCK = 4096


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def root(tree: Tree) -> int:
    return tree.add_directory(Attributes(mtime=TIME))


def put(tree: Tree, directory: int, name: str, **attributes: int) -> int:
    """An empty file."""
    row = tree.children[directory][name.encode()] = tree.add_file(Attributes(**{"mtime": TIME, **attributes}), 0, 0)
    return row


def test_the_superblock_is_what_the_others_read(tree: Tree, root: int) -> None:
    put(tree, root, "f")
    made = write_metadata(tree, root, DataMap(), Device(0, 5 * BLOCK))
    superblock = parse(bytes(made.data))
    assert (superblock.blocks, superblock.size, superblock.extra_devices) == (7, made.size, 0)
    assert bytes.fromhex(superblock.uuid.replace("-", "")) == made.uuid
    assert inodes(bytes(made.data)) == made.inodes == 2
    block = bytearray(made.data[1024:BLOCK])
    (stored,) = struct.unpack_from("<I", block, 4)
    block[4:8] = bytes(4)
    assert stored == ~core.crc32c(bytes(block)) & 0xFFFFFFFF


def test_an_image_is_the_same_whatever_the_order_of_its_making() -> None:
    images = []
    for names in (("a", "b", "c"), ("c", "b", "a")):
        tree = Tree()
        root = tree.add_directory(Attributes(mtime=5))
        for name in names:
            put(tree, root, name, xattrs=tree.intern(((b"user.a", name.encode()),)), mtime=ord(name))
        images.append(single(tree, root, DataMap()))
    assert images[0] == images[1]


def test_other_contents_have_another_uuid() -> None:
    uuids = set()
    for content in (b"x" * 5000, b"y" * 5000):
        stack = Stack(merged=True)
        stack.add((info("f"), content))
        uuids.add(stack.metadata().uuid)
    assert len(uuids) == 2


def test_the_commonest_time_makes_inodes_compact(tree: Tree, root: int) -> None:
    rows = [put(tree, root, f"{number}") for number in range(300)]
    small = len(single(tree, root, DataMap()))
    found = Reader(single(tree, root, DataMap())).entries()
    assert all(entry.mtime_ns == TIME for entry in found.values())
    for row in rows[:299]:
        tree.set_attributes(row, Attributes(mtime=TIME + row, uid=70_000))
    assert len(single(tree, root, DataMap())) > small
    found = Reader(single(tree, root, DataMap())).entries()
    assert sorted(entry.mtime_ns - TIME for entry in found.values()) == [0, 0, *rows[:299]]


@pytest.mark.parametrize("attributes", [
    {"uid": 65_536}, {"gid": 65_536}, {"uid": 2**32 - 2, "gid": 2**32 - 2}, {"mtime": -1}, {"mtime": TIME + 1},
    {"mtime": 1 << 69}, {"mtime": -(1 << 69)}, {"mode": 0o7777}, {"mode": 0},
])  # fmt: skip
def test_attributes_are_kept(tree: Tree, root: int, attributes: dict[str, int]) -> None:
    put(tree, root, "a")
    put(tree, root, "f", **attributes)
    entry = Reader(single(tree, root, DataMap())).entries()["f"]
    assert int(entry.mode, 8) == attributes.get("mode", 0o755)
    assert entry.owner == (attributes.get("uid", 0), attributes.get("gid", 0))
    assert entry.mtime_ns == attributes.get("mtime", TIME)


def test_a_file_of_70000_names_is_kept(tree: Tree, root: int, tmp_path: Path) -> None:
    row = put(tree, root, "0")
    tree.children[root].update({b"%d" % number: row for number in range(70_000)})
    image = single(tree, root, DataMap())
    assert len(Reader(image).entries()["0"].links) == 70_000
    check_layer(write(tmp_path / "image", image)[0])


@pytest.mark.parametrize("count", [0, 1, 100, 240, 250, 260, 5000])
@pytest.mark.parametrize("length", [1, 5, 255])
def test_directories_of_any_size(tree: Tree, root: int, count: int, length: int) -> None:
    directory = tree.children[root][b"d"] = tree.add_directory(Attributes())
    names = {f"{number:x}".rjust(length, "!")[:length] for number in range(count)}
    for name in names:
        put(tree, directory, name)
    reader = Reader(single(tree, root, DataMap()))
    found = reader.names(reader.inode(reader.names(reader.inode(reader.root))[b"d"][0]))
    assert set(found) == {b".", b"..", *(name.encode() for name in names)}


def test_metadata_lie_in_the_order_of_a_search(tree: Tree, root: int) -> None:
    """Each directory's files together, then those of its first directory, and so on; the root first."""
    for outer in "cab":
        directory = tree.children[root][outer.encode()] = tree.add_directory(Attributes())
        for inner in "zxy":
            deep = tree.children[directory][inner.encode()] = tree.add_directory(Attributes())
            put(tree, deep, "f")
    reader = Reader(single(tree, root, DataMap()))
    order: list[int] = []
    pending = [(reader.root, "")]
    while pending:
        nid, path = pending.pop()
        found = reader.names(reader.inode(nid))
        names = {os.fsdecode(name): at for name, (at, _) in found.items() if name not in (b".", b"..")}
        order += names.values()
        below = [(at, f"{path}/{name}") for name, at in names.items() if stat.S_ISDIR(reader.inode(at).mode)]
        pending += reversed(below)
    assert order == sorted(order)
    assert reader.root < order[0]


def test_xattrs_of_several_files_are_stored_once(tree: Tree, root: int) -> None:
    value = bytes(range(256)) * 8
    alone = tree.intern(((b"user.alone", b"1"), (b"user.big", value)))
    both = tree.intern(((b"user.big", value),))
    put(tree, root, "a", xattrs=alone)
    for name in "bcde":
        put(tree, root, name, xattrs=both)
    image = single(tree, root, DataMap())
    assert image.count(value) == 1
    found = Reader(image).entries()
    assert found["a"].xattrs == {"user.alone": b"1", "user.big": value}
    assert found["e"].xattrs == {"user.big": value}


# Contents


def lay(size: int, *pieces: tuple[int, bytes]) -> tuple[DataMap, Data, int]:
    contents, data = DataMap(), Data()
    laying = Laying(contents, 0, data.land)
    number = laying.lay(size, pieces)
    del data.bytes[laying.size :]
    return contents, data, number


@pytest.mark.parametrize(("size", "pieces", "stored"), [
    (0, [], 0),
    (5, [(0, b"12345")], 0),  # beside the inode
    (257, [(0, b"x" * 257)], BLOCK),
    (300, [(299, b"x")], BLOCK),
    (10_000, [], 0),
    (10_000, [(0, b"x" * 100), (100, b"y" * 9900)], 3 * BLOCK),
    (10_000, [(5, b"x"), (4090, b"y" * 10), (9000, b"z")], 3 * BLOCK),
    (1 << 20, [(700_000, b"x")], BLOCK),
    (1 << 20, [(0, b"x"), (700_000, b"x" * 5000), (800_001, b"y" * 3)], 5 * BLOCK),
    (3 << 20, [(0, b"x" * (3 << 20))], 3 << 20),
    (5 << 20, [(1 << 20, b"x" * (2 << 20)), (4 << 20, b"y" * 10)], (2 << 20) + BLOCK),
])  # fmt: skip
def test_contents_are_laid_without_their_holes(
    tree: Tree, root: int, size: int, pieces: list[tuple[int, bytes]], stored: int
) -> None:
    expected = bytearray(size)
    for offset, piece in pieces:
        expected[offset : offset + len(piece)] = piece
    contents, data, number = lay(size, *pieces)
    assert len(data.bytes) == stored
    tree.children[root][b"f"] = tree.add_file(Attributes(), size, number)
    reader = Reader(single(tree, root, contents, bytes(data.bytes)))
    assert reader.content(reader.inode(reader.names(reader.inode(reader.root))[b"f"][0])) == expected


def test_a_map_has_chunks_as_large_as_its_holes_allow() -> None:
    contents = DataMap()
    number = contents.add_extents(0, (Extent(16, 16, 0), Extent(64, 3, 65_536)), b"")
    assert contents.chunk_map(number, 67 * BLOCK) == (4, array("I", [HOLE, 0, HOLE, HOLE, 16]))
    assert contents.chunk_map(0, 1 << 50) == (31, array("I", [HOLE] * 128))


def test_equal_contents_are_laid_once() -> None:
    contents, data = DataMap(), Data()
    laying = Laying(contents, 0, data.land)
    large, small = b"x" * (PIECE * 2 + 5), b"y" * 5000
    first = [laying.lay(len(content), [(0, content)]) for content in (large, small)]
    size = laying.size
    assert [laying.lay(len(content), [(0, content)]) for content in (large, small)] == first
    assert laying.size == size
    after = laying.lay(300, [(0, b"z" * 300)])  # where the large one was landed in vain
    assert contents.starts[after] == size
    assert data.bytes[size : size + 300] == b"z" * 300
    assert laying.lay(1 << 20, [(0, small)]) not in first  # with a hole behind it


def test_contents_of_other_devices_are_shared_unless_they_are_separate() -> None:
    for separate in (False, True):
        contents = DataMap(separate=separate)
        numbers = [Laying(contents, device, Data().land).lay(5000, [(0, b"x" * 5000)]) for device in (0, 1)]
        assert (numbers[0] != numbers[1]) == separate


def test_devices_follow_one_another_in_the_image(tree: Tree, root: int) -> None:
    contents = DataMap()
    rows = {}
    for device, letter in enumerate((b"a", b"b", b"c")):
        number = contents.add(device, BLOCK, b"")
        rows[letter] = tree.children[root][letter] = tree.add_file(Attributes(), BLOCK, number)
    blocks = [bytes(BLOCK) + letter * BLOCK for letter in rows]
    made = write_metadata(
        tree, root, contents, Device(0, 2 * BLOCK), [Device(1, 2 * BLOCK, b"one"), Device(2, 2 * BLOCK - 5)]
    )
    reader = Reader(bytes(made.data) + blocks[0], blocks[1:])
    assert [slot[0].rstrip(b"\0") for slot in reader.slots] == [b"one", b""]
    found = {name: reader.content(reader.inode(nid)) for name, (nid, _) in reader.names(
        reader.inode(reader.root)).items() if name in rows}  # fmt: skip
    assert found == {letter: letter * BLOCK for letter in rows}
    assert parse(bytes(made.data)).extra_devices == 2


def test_an_image_may_have_devices_only(tree: Tree, root: int) -> None:
    contents = DataMap()
    tree.children[root][b"f"] = tree.add_file(Attributes(), 5, contents.add(7, 0, b""))
    made = write_metadata(tree, root, contents, None, [Device(7, BLOCK)])
    assert made.size == len(made.data)
    assert Reader(bytes(made.data), [b"12345".ljust(BLOCK)]).entries()["f"].size == 5


# What does not fit


def test_names_and_targets_beyond_the_limits_are_refused(tree: Tree, root: int) -> None:
    put(tree, root, "n" * 256)
    with pytest.raises(ImageError, match="a name has 256 bytes: at most 255 fit"):
        single(tree, root, DataMap())
    tree.children[root] = {b"l": tree.add_symlink(Attributes(), b"x" * 4096)}
    with pytest.raises(ImageError, match="a target of 4096 bytes: 1 to 4095 fit"):
        single(tree, root, DataMap())


@pytest.mark.parametrize(("xattrs", "error"), [
    (((b"user.a", bytes(65_536)),), "the xattr 'user.a' has 65536 bytes: at most 65535 fit"),
    (((b"user." + b"n" * 256, b""),), "a name of 256 bytes behind its namespace: at most 255 fit"),
    (((b"other.a", b""),), "is of a kind that EROFS cannot store"),
    (tuple((b"user.%d" % number, bytes(65_000)) for number in range(5)), "xattrs of 325052 bytes: at most 262148"),
])  # fmt: skip
def test_xattrs_beyond_the_limits_are_refused(
    tree: Tree, root: int, xattrs: tuple[tuple[bytes, bytes], ...], error: str
) -> None:
    put(tree, root, "f", xattrs=tree.intern(xattrs))
    with pytest.raises(ImageError, match=error):
        single(tree, root, DataMap())


def test_an_image_beyond_16_tib_is_refused(tree: Tree, root: int) -> None:
    write_metadata(tree, root, DataMap(), Device(0, (1 << 44) - 3 * BLOCK))
    each: tuple[tuple[Device | None, list[Device]], ...] = (
        (Device(0, 1 << 44), []), (None, [Device(1, 1 << 43), Device(2, 1 << 43)]),
    )  # fmt: skip
    for devices in each:
        with pytest.raises(ImageError, match="less than 16 TiB"):
            write_metadata(tree, root, DataMap(), *devices)


def test_a_content_on_no_device_is_refused(tree: Tree, root: int) -> None:
    contents = DataMap()
    tree.children[root][b"f"] = tree.add_file(Attributes(), 2 * BLOCK, contents.add(0, BLOCK, b""))
    for device in (None, Device(1, 9 * BLOCK), Device(0, 2 * BLOCK)):
        with pytest.raises(ImageError, match="on none of the image's devices"):
            write_metadata(tree, root, contents, device)
    write_metadata(tree, root, contents, Device(0, 3 * BLOCK))


def test_xattr_names_are_told_apart_by_their_namespaces() -> None:
    names = (b"user.a", b"user.", b"system.posix_acl_access", b"system.posix_acl_accessx", b"security.x", b"userx")
    assert [on_disk.xattr_prefix(name) for name in names] == [1, 0, 2, 0, 6, 0]


def test_each_of_the_layers_is_sound(tmp_path: Path) -> None:
    stack = Stack()
    for number, members in enumerate(LAYERS):
        stack.add(*members)
        check_layer(write(tmp_path / f"{number}", stack.images[-1])[0])
