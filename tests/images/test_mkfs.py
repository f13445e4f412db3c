"""mkfs.erofs: the same image whenever and wherever it is made, and nothing of the directory missing in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pyerofs import program as programs
from pyerofs.erofs.superblock import parse
from pyerofs.errors import UnavailableError
from pyerofs.images.mkfs import Mkfs, find_mkfs, make_image
from tests.support.needs import need, need_root
from tests.support.ordinary import check_layer, mounted
from tests.support.trees import Tree, assert_same


@pytest.fixture
def program() -> Mkfs:
    need_root()
    need("mkfs.erofs", "erofs-utils")
    return find_mkfs()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of our own in mkfs.erofs's place."""
    path = tmp_path / "bin" / "mkfs.erofs"
    path.parent.mkdir()
    path.touch(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    return path


def test_the_kernel_shows_the_tree(program: Mkfs, tree: Tree, tmp_path: Path) -> None:
    """The superblock's checksum, which the kernel looks at, included."""
    image = tmp_path / "image"
    make_image(program, str(tree.root), str(image))
    check_layer(image)
    with mounted([image], tmp_path / "mnt") as root:
        assert_same(tree.entries, root)


def test_the_same_at_another_time_and_place(
    program: Mkfs, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image(program, str(tree.root), str(tmp_path / "one"))
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", "--reflink=auto", tree.root, copy], check=True)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "12345")
    monkeypatch.chdir(tmp_path)
    make_image(program, str(copy), str(tmp_path / "two"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_another_content_has_another_uuid(program: Mkfs, tmp_path: Path) -> None:
    uuids = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        make_image(program, str(tmp_path / name), str(tmp_path / f"{name}.erofs"))
        uuids.add(parse((tmp_path / f"{name}.erofs").read_bytes()).uuid)
    assert len(uuids) == 2
    assert all(uuid[14] == "8" and uuid[19] in "89ab" for uuid in uuids)


@pytest.mark.parametrize(("version", "name", "error"), [
    ((1, 5), "lost+found", "'lost\\+found': mkfs.erofs 1.5 leaves out files whose name begins so"),
    ((1, 5), "sub/lost+found here", "leaves out files"),
    ((1, 7), "n" * 255, "mkfs.erofs 1.7 cannot store names of 255 bytes; install erofs-utils 1.8 or newer"),
])  # fmt: skip
def test_what_a_version_gets_wrong(
    program: Mkfs, tmp_path: Path, version: tuple[int, int], name: str, error: str
) -> None:
    path = tmp_path / "tree" / name
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UnavailableError, match=error):
        make_image(program._replace(version=version), str(tmp_path / "tree"), str(tmp_path / "image"))


def test_a_file_that_is_left_out_is_missed(program: Mkfs, tmp_path: Path, script: Path) -> None:
    """A program that leaves something out without a word."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "less").mkdir()
    (tmp_path / "tree" / "file").touch()
    script.write_text(f'#!/bin/sh\nshift $(($# - 2))\nexec {program.path} "$1" {tmp_path}/less\n')
    with pytest.raises(UnavailableError, match="put 1 files into the image instead of 2"):
        make_image(Mkfs(str(script), (1, 5)), str(tmp_path / "tree"), str(tmp_path / "image"))


@pytest.mark.parametrize(("text", "version"), [
    ("mkfs.erofs 1.5", (1, 5)), ("mkfs.erofs (erofs-utils) 1.8.10", (1, 8)), ("mkfs.erofs (erofs-utils) v1.9", (1, 9)),
])  # fmt: skip
def test_versions(script: Path, text: str, version: tuple[int, int]) -> None:
    script.write_text(f"#!/bin/sh\necho '{text}'\nexit 1\n")
    assert find_mkfs() == Mkfs(str(script), version)


@pytest.mark.parametrize(("text", "error"), [
    ("mkfs.erofs 1.4", "is version 1.4: 1.5 or newer is needed"), ("hello", "cannot tell the version"),
])  # fmt: skip
def test_a_program_that_will_not_do(script: Path, text: str, error: str) -> None:
    script.write_text(f"#!/bin/sh\necho '{text}' >&2\n")
    with pytest.raises(UnavailableError, match=error):
        find_mkfs()


def test_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not PATH itself: beside this the guest's run starts programs (guestrun.py).
    monkeypatch.setattr(programs, "find", lambda _: None)
    with pytest.raises(UnavailableError, match=r"mkfs\.erofs is not installed: apt-get install erofs-utils"):
        find_mkfs()


def test_what_it_says_when_it_fails(script: Path, tmp_path: Path) -> None:
    script.write_text("#!/bin/sh\necho 'mkfs.erofs 1.5'\necho '<E> erofs: the   first reason' >&2\nexit 1\n")
    with pytest.raises(UnavailableError, match=r"^mkfs.erofs failed: the first reason$"):
        make_image(Mkfs(str(script), (1, 5)), str(tmp_path), str(tmp_path / "image"))
