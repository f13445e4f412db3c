"""What of pyerofs.kernel.nbd needs no nbd driver; the rest is in guest/test_nbd_device.py."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyerofs.errors import MountError, PyerofsError, UnavailableError, UsageError
from pyerofs.kernel import nbd, nbd_node, netlink


@pytest.fixture
def sys_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /sys/block of ours, on a kernel that has no NBD over netlink."""
    monkeypatch.setattr(nbd_node, "SYS_BLOCK", tmp_path)
    monkeypatch.setattr(netlink, "_FAMILY", b"nbx\0")
    return tmp_path


def add(sys_block: Path, index: int, size: int = 0) -> Path:
    node = sys_block / f"nbd{index}"
    (node / "queue").mkdir(parents=True)
    (node / "size").write_text(f"{size}\n")
    return node


@pytest.mark.parametrize(
    ("name", "index"), [("/dev/nbd0", 0), ("/dev/nbd12", 12), ("nbd3", 3), ("7", 7), (5, 5), ("/dev/../dev/nbd1", 1)]
)
def test_index_of(name: str | int, index: int) -> None:
    assert nbd_node.index_of(name) == index


def test_index_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to("/dev/nbd9")
    assert nbd_node.index_of(str(tmp_path / "mine")) == 9


@pytest.mark.parametrize("name", ["", "/dev/sda", "/dev/nbd", "/dev/nbd1p1", "/dev/nbd\u0661", "nbd-1", "/dev/nbd1\n"])
def test_index_of_another_name(name: str) -> None:
    with pytest.raises(UsageError, match="not the name of an NBD device"):
        nbd_node.index_of(name)


def test_arguments_are_checked_before_anything_is_touched() -> None:
    with pytest.raises(MountError, match="511 bytes are too few"):
        nbd.attach([0], 511, 3, "x")
    with pytest.raises(UsageError, match="unknown way 'best'"):
        nbd.attach([0], 512, 3, "x", how="best")
    with pytest.raises(UsageError, match="not the name"):
        nbd.attach([0], 512, 3, "x", device="/dev/sda")
    with pytest.raises(MountError, match="1 TiB"):
        nbd.attach([0], 1 << 40, 3, "x", how="ioctl")


def test_a_kernel_without_nbd(sys_block: Path) -> None:
    with pytest.raises(
        UnavailableError, match=r"^this kernel has no NBD devices: load the nbd module .* -t erofs\.fuse$"
    ):
        nbd.attach([0], 512, 3, "x")
    with pytest.raises(UnavailableError, match="over netlink here"):
        nbd.attach([0], 512, 3, "x", how="netlink")
    with pytest.raises(UnavailableError, match="this kernel has no /dev/nbd77777: "):
        nbd.attach([0], 512, 3, "x", device="/dev/nbd77777")
    with pytest.raises(UsageError, match="there is no device /dev/nbd0"):
        nbd.disconnect("/dev/nbd0")
    assert nbd_node.backend_of("/dev/nbd0") is None


def test_devices_in_use_are_seen_in_sysfs(sys_block: Path) -> None:
    (add(sys_block, 0) / "pid").write_text("1\n")
    add(sys_block, 1, size=8)
    (sys_block / "nbd1" / "backend").write_text("some id\n")
    add(sys_block, 10)
    assert nbd_node.indices() == [0, 1, 10]
    assert [nbd_node.is_busy(index) for index in (0, 1, 10, 11)] == [True, True, False, False]
    assert nbd_node.size_of(1) == 4096
    assert nbd_node.backend_of(1) == "some id"
    with pytest.raises(MountError, match="/dev/nbd1 is in use"):
        nbd.attach([0], 512, 3, "x", device="/dev/nbd1")


def test_settings_that_cannot_be_made_are_named(sys_block: Path) -> None:
    node = add(sys_block, 0)
    assert nbd_node.tune(0) == []
    assert (node / "queue" / "io_timeout").read_text() == "1000"
    assert nbd_node.tune(0, 130_000) == []
    assert (node / "queue" / "io_timeout").read_text() == "130000"
    assert nbd_node.tune(1) == ["queue/io_timeout"]


def test_a_node_that_cannot_be_made(sys_block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (add(sys_block, 77777) / "dev").write_text("43:99\n")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    with pytest.raises(UnavailableError, match="`mknod /dev/nbd77777 b 43 99`"):
        nbd_node.make_node(77777)


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        (errno.EBUSY, MountError, 32),
        (errno.EINVAL, MountError, 32),
        (errno.ENOSPC, UnavailableError, 2),
        (errno.ENOMEM, UnavailableError, 2),
        (errno.EPERM, UsageError, 1),
    ],
)
def test_errors_of_the_kernel(code: int, kind: type[PyerofsError], status: int) -> None:
    error = nbd_node.explain(OSError(code, os.strerror(code)), "/dev/nbd0")
    assert type(error) is kind
    assert error.status == status
    assert "\n" not in str(error)


def test_not_root() -> None:
    os.seteuid(65534)
    try:
        assert str(nbd_node.explain(PermissionError(errno.EPERM, ""), "x")) == "NBD devices are for root only: try sudo"
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("outcome", [FileNotFoundError(), subprocess.TimeoutExpired("modprobe", 30), 1])
def test_load_module_raises_nothing(outcome: Exception | int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> SimpleNamespace:
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(returncode=outcome)

    monkeypatch.setattr(nbd, "available", lambda: False)
    monkeypatch.setattr(subprocess, "run", run)
    assert nbd.load_module() is False


def test_load_module_without_modprobe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert nbd.load_module() is False
