"""Loop devices of this machine; needs root."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from pyerofs.errors import MountError, UnavailableError, UsageError
from pyerofs.kernel import loop


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(64 << 10))
    return path


def sysfs(device: str, name: str) -> str:
    return Path(f"/sys/block/{Path(device).name}/{name}").read_text().strip()


def await_free(device: str) -> None:
    deadline = time.monotonic() + 5
    while Path(f"/sys/block/{Path(device).name}/loop").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check(image: Path) -> None:
    device, fd = loop.attach(str(image))
    try:
        assert os.pread(fd, 1 << 20, 0) == image.read_bytes()
        assert (sysfs(device, "ro"), sysfs(device, "loop/autoclear")) == ("1", "1")
        assert sysfs(device, "loop/backing_file") == str(image)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    await_free(device)


def test_read_only_and_cleared_at_the_last_close(image: Path) -> None:
    check(image)


def test_an_older_kernel_takes_two_steps(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOOP_CONFIGURE", 0x4CFF)
    check(image)


def test_several_at_once_get_a_device_each(image: Path) -> None:
    found: list[tuple[str, int]] = []
    start = threading.Barrier(6)

    def one() -> None:
        start.wait()
        found.append(loop.attach(str(image)))

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, fd in found:
        os.close(fd)
    assert len({device for device, _ in found}) == 6


def test_a_device_taken_by_another_is_not_asked_again_for_ever(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, fd = loop.attach(str(image))
    monkeypatch.setattr(loop, "_free_device", lambda: taken)
    try:
        with pytest.raises(UnavailableError, match="taken by another process"):
            loop.attach(str(image))
    finally:
        os.close(fd)


def test_lines_of_errors(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^cannot open .*/none: No such file or directory$"):
        loop.attach(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"^cannot open .*: Is a directory$"):
        loop.attach(str(tmp_path))
    with pytest.raises(MountError, match=r"^cannot attach /dev/null to /dev/loop\d+: "):
        loop.attach("/dev/null")
    monkeypatch.setattr(loop, "_free_device", lambda: "/dev/loop99999")
    with pytest.raises(
        UnavailableError, match=r"^/dev/loop99999 is missing from /dev: try `mknod /dev/loop99999 b 7 99999`"
    ):
        loop.attach(str(image))


def test_not_root(tmp_path: Path) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(UsageError, match="loop devices need root"):
            loop.attach("/dev/null")
    finally:
        os.seteuid(0)
