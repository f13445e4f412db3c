"""The registry, the memory or the cache goes bad: reads go on, every byte is right, nothing is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.kernel import mountpoint
from tests.guest.load import RECOVERY, Load, alive_again, drop_caches, record_of
from tests.support.images import Published
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, by_pyerofs, until
from tests.support.trees import Tree, assert_same

OUTAGE = float(os.environ.get("PYEROFS_OUTAGE", "2"))  # seconds
SPOILS = int(os.environ.get("PYEROFS_SPOILS", "1"))


@pytest.fixture(autouse=True)
def nothing_left(scene: Scene) -> Iterator[None]:
    yield
    scene.nothing_left()


def test_a_registry_that_is_away_for_a_while(
    scene: Scene, tree: Tree, published: Published, registry: LoggingRegistry
) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    registry.stop()
    try:
        with Load(scene.mnt, tree) as load:
            parked = Path("/sys/block", Path(record_of(scene).device).name, "inflight")
            until(lambda: int(parked.read_text().split()[0]), "a read that waits")
            end = time.monotonic() + OUTAGE  # the outage is what is tested, and has to last
            until(lambda: time.monotonic() > end, "the end of the outage", OUTAGE + RECOVERY)
            assert load.errors == []
            registry.start()
            load.go_on()
    finally:
        registry.restart()
    assert record_of(scene).restarts == 0
    assert_same(tree.entries, scene.mnt)
    by_pyerofs(scene)


def test_the_oom_killer(scene: Scene, tree: Tree, published: Published) -> None:
    """It takes the daemon, not the supervisor."""
    scene.mount_image(published.plain, fstype="erofs.nbd")
    with Load(scene.mnt, tree) as load:
        load.go_on()
        before = record_of(scene)
        assert int(Path(f"/proc/{before.supervisor}/oom_score_adj").read_text()) < 0
        Path(f"/proc/{before.pid}/oom_score_adj").write_text("1000")
        Path("/proc/sysrq-trigger").write_text("f")
        now = alive_again(scene, before)
        assert now.supervisor == before.supervisor
        assert Path(f"/proc/{now.pid}/oom_score_adj").read_text() == "0\n"
        load.go_on()
    by_pyerofs(scene)


def test_a_lazy_unmount_of_a_busy_mount_whose_daemon_dies(scene: Scene, published: Published) -> None:
    """Who has a file open goes on reading; with the last of them everything goes."""
    scene.mount_image(published.plain, fstype="erofs.nbd")
    before = record_of(scene)
    with (scene.mnt / "text").open("rb") as file:
        subprocess.run(["umount", "-l", scene.mnt], check=True)
        assert subprocess.run(["umount", scene.mnt], capture_output=True).returncode == 32  # again is an error, no more
        os.kill(before.pid, signal.SIGKILL)
        alive_again(scene, before)
        drop_caches()
        assert file.read(6) == b"line 0"
    scene.nothing_left()


def test_records_of_the_dead_are_swept(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    before = record_of(scene)
    os.kill(before.supervisor, signal.SIGKILL)
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: not before.alive() and not before.supervised(), "the end of both")
    subprocess.run(["umount", scene.mnt], check=True)
    assert scene.run("reattach", "--all") == Done(0, "", "")
    scene.nothing_left()


def test_a_disk_without_room_for_the_cache(scene: Scene, tree: Tree, published: Published) -> None:
    """Reads are answered without it, and it is used again when there is room."""
    scene.cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "full", scene.cache], check=True)
    try:
        scene.mount_image(published.plain, fstype="erofs.nbd")
        assert_same(tree.entries, scene.mnt)
        drop_caches()
        with Load(scene.mnt, tree) as load:
            load.go_on()
            subprocess.run(["mount", "-o", "remount,size=64m", scene.cache], check=True)
            load.go_on(20)
        assert_same(tree.entries, scene.mnt)
        assert scene.run("umount", scene.mnt) == Done(0, "", "")
    finally:
        subprocess.run(["umount", scene.cache], check=True)


def truncate(fd: int, size: int, rng: random.Random) -> None:
    os.truncate(fd, rng.randrange(size))


def zero(fd: int, size: int, rng: random.Random) -> None:
    start = rng.randrange(size)
    os.pwrite(fd, bytes(min(256 << 10, size - start)), start)


def flip(fd: int, size: int, rng: random.Random) -> None:
    for _ in range(100):
        at = rng.randrange(size)
        byte = os.pread(fd, 1, at) or b"\0"
        os.pwrite(fd, bytes([byte[0] ^ 1 << rng.randrange(8)]), at)


@pytest.mark.parametrize("spoil", [truncate, zero, flip])
def test_a_cache_that_is_spoiled(scene: Scene, tree: Tree, published: Published, spoil: object) -> None:
    assert callable(spoil)
    rng = random.Random(7)
    scene.mount_image(published.plain, fstype="erofs.nbd")
    record = record_of(scene)
    assert_same(tree.entries, scene.mnt)
    (data,) = (scene.cache / "sha256").glob(f"{record.digest.removeprefix('sha256:')}*/data")
    with Load(scene.mnt, tree) as load, data.open("r+b") as file:
        for _ in range(SPOILS):
            spoil(file.fileno(), record.size, rng)
            load.go_on(10)
    drop_caches()
    assert_same(tree.entries, scene.mnt)
    assert mountpoint.find(str(scene.mnt)) is not None
    by_pyerofs(scene)
