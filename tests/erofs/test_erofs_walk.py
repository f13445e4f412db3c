"""A directory of this machine into an EROFS image: everything that a filesystem can hold; what changes meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyerofs.erofs.data_map import DataMap
from pyerofs.erofs.laying import Laying
from pyerofs.erofs.tree import Tree
from pyerofs.erofs.walk import Walk
from pyerofs.erofs.writer import Device, write_metadata
from pyerofs.errors import ImageError, UnavailableError
from tests.support.erofsreader import Reader
from tests.support.erofsstacks import Data, whole
from tests.support.trees import Tree as Made


def walk(path: Path, laying: Laying | None = None) -> bytes:
    tree, contents, data = Tree(), DataMap(), Data()
    laying = laying or Laying(contents, 0, data.land)
    found = Walk(os.fsencode(path), tree, laying)
    assert not found.left_out
    return whole(write_metadata(tree, found.root, contents, Device(0, laying.size)), data.bytes)


def test_everything_that_a_filesystem_holds_is_in_the_image(tree: Made) -> None:
    found = Reader(walk(tree.root)).entries()
    assert sorted(found) == sorted(tree.entries)
    for name, entry in found.items():
        assert entry._replace(links=()) == tree.entries[name]._replace(links=())
        assert set(entry.links) == set(tree.entries[name].links)


def test_holes_are_not_stored(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"x")
    assert len(walk(tmp_path)) < 4 << 20


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * (3 << 20))

    def land(_offset: int, _data: bytes | bytearray) -> None:
        os.truncate(path, 5)

    with pytest.raises(ImageError, match=r"f' changed its size while it was read"):
        walk(tmp_path, Laying(DataMap(), 0, land))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot read '.*/nothing': No such file"):
        walk(tmp_path / "nothing")


def test_a_file_is_no_tree(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(ImageError, match="f' is not a directory"):
        walk(tmp_path / "f")
