"""The user of an image, and the files in which it is looked up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyerofs.bundle.rootfile import read_in_root
from pyerofs.bundle.users import ContainerUser, look_up
from pyerofs.errors import ImageError
from tests.support.busyimage import GROUP, PASSWD


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/passwd").write_bytes(PASSWD + b"broken\n::::\nodd:x:nine:1::/:/bin/sh\n")
    (tmp_path / "root/etc/group").write_bytes(GROUP + b"broken\nmany:x:nine:web\n")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ContainerUser(0, 0, [], "/root")),
        ("web", ContainerUser(1234, 1235, [99], "/srv")),
        ("1234", ContainerUser(1234, 1235, [99], "/srv")),
        ("web:extra", ContainerUser(1234, 99, [], "/srv")),
        ("web:7", ContainerUser(1234, 7, [], "/srv")),
        ("4000:4001", ContainerUser(4000, 4001, [], "")),
        ("4000", ContainerUser(4000, 0, [], "")),
        (":extra", ContainerUser(0, 99, [], "/root")),
    ],
)
def test_a_user_s_numbers(root: Path, text: str, expected: ContainerUser) -> None:
    assert look_up(str(root), text) == expected


@pytest.mark.parametrize("text", ["nobody", "odd", "web:nogroup", "99999999999", "-1", "\u0661"])
def test_a_user_that_is_not_there(root: Path, text: str) -> None:
    with pytest.raises(ImageError, match=r"is not in its /etc/(passwd|group)"):
        look_up(str(root), text)


def test_an_image_without_lists(tmp_path: Path) -> None:
    assert look_up(str(tmp_path), "5:6") == ContainerUser(5, 6, [], "")
    with pytest.raises(ImageError):
        look_up(str(tmp_path), "web")


def test_links_stay_in_the_image(root: Path) -> None:
    (root.parent / "secret").write_bytes(b"of the machine")
    (root / "secret").write_bytes(b"of the image")
    os.symlink("/secret", root / "absolute")
    os.symlink("../../../../../secret", root / "etc/up")
    os.symlink("/etc/../absolute", root / "twice")
    os.symlink("/etc", root / "there")
    for path in ("/secret", "absolute", "/etc/up", "twice", "there/up", "/../../secret", "etc/./../secret"):
        assert read_in_root(str(root), path, 100) == b"of the image"
    assert read_in_root(str(root), "secret", 2) == b"of"


def test_what_is_no_file_is_an_error(root: Path) -> None:
    os.symlink("loop", root / "loop")
    os.mkfifo(root / "fifo")
    for path, code in (("loop", errno.ELOOP), ("fifo", errno.EINVAL), ("etc", errno.EINVAL), ("no", errno.ENOENT)):
        with pytest.raises(OSError) as caught:
            read_in_root(str(root), path, 1)
        assert caught.value.errno == code
