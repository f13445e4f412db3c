"""Whatever happens to our processes, the registry or the device: reads go on, every byte is right, nothing is left.

Each test runs under a load: threads that read files of the mount all the time, past the page cache, and compare them.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import Images, Published
from kernellog import KernelLog
from scene import Done, Scene, by_pyerofs, until
from trees import Tree

from pyerofs.record import Record, read_all

THREADS = 2
KILLS = int(os.environ.get("PYEROFS_KILLS", "2"))
RECOVERY = 60.0  # seconds: the machine is emulated


@pytest.fixture(autouse=True)
def quiet_kernel(scene: Scene) -> Iterator[None]:
    log = KernelLog()
    yield
    scene.nothing_left()
    log.close()


def record_of(scene: Scene) -> Record:
    return next(r for r in read_all(dead=True) if r.target == str(scene.mnt))


class Load:
    """Readers of a mount. `reads` counts those that were right; `errors` holds what was not."""

    def __init__(self, root: Path, tree: Tree):
        self.reads = 0
        self.errors: list[str] = []
        self.longest = 0.0
        self._root = root
        self._tree = tree
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._files = [p.relative_to(tree.root) for p in tree.root.rglob("*") if p.is_file() and not p.is_symlink()]
        self._threads = [threading.Thread(target=self._read, args=(n,), daemon=True) for n in range(THREADS)]

    def _read(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set():
            path = rng.choice(self._files)
            began = time.monotonic()
            try:
                with (self._root / path).open("rb") as f:
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    found = hashlib.sha256(f.read()).digest()
            except OSError as e:
                self.errors.append(f"{path}: {e}")
                return
            if found != hashlib.sha256((self._tree.root / path).read_bytes()).digest():
                self.errors.append(f"{path}: wrong bytes")
                return
            with self._lock:
                self.reads += 1
                self.longest = max(self.longest, time.monotonic() - began)

    def go_on(self, count: int = 5) -> None:
        """Waits for so many more reads."""
        target = self.reads + count
        drop_caches()
        until(lambda: self.errors or self.reads >= target, "reads that go on", RECOVERY)
        assert self.errors == []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(RECOVERY)
        assert self.errors == []
        assert not any(thread.is_alive() for thread in self._threads), "a read hangs"


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1\n")


def alive_again(scene: Scene, before: Record) -> Record:
    """The record, once there is another daemon than in `before`."""

    def another() -> bool:
        now = record_of(scene)
        return now.pid != before.pid and now.alive()

    until(another, "that another daemon serves", RECOVERY)
    return record_of(scene)


def test_a_daemon_that_is_killed_is_replaced(scene: Scene, tree: Tree, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    with Load(scene.mnt, tree) as load:
        load.go_on()
        for number in range(KILLS):
            before = record_of(scene)
            began = time.monotonic()
            os.kill(before.pid, signal.SIGKILL)
            now = alive_again(scene, before)
            print(f"replaced after {time.monotonic() - began:.2f} s")
            assert now.restarts == number + 1
            load.go_on()
    print(f"{load.reads} reads, the longest {load.longest:.2f} s")
    by_pyerofs(scene)


def test_a_daemon_that_hangs_is_replaced(scene: Scene, tree: Tree, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    with Load(scene.mnt, tree) as load:
        load.go_on()
        before = record_of(scene)
        os.kill(before.pid, signal.SIGSTOP)
        alive_again(scene, before)
        load.go_on()
    by_pyerofs(scene)


def test_a_supervisor_that_is_killed_is_replaced(scene: Scene, tree: Tree, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    with Load(scene.mnt, tree) as load:
        load.go_on()
        before = record_of(scene)
        os.kill(before.supervisor, signal.SIGKILL)
        until(lambda: record_of(scene).supervisor not in (0, before.supervisor), "another supervisor", RECOVERY)
        assert record_of(scene).pid == before.pid
        os.kill(before.pid, signal.SIGKILL)
        alive_again(scene, before)
        load.go_on()
    by_pyerofs(scene)


def test_reattach_when_both_are_dead(scene: Scene, tree: Tree, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    with Load(scene.mnt, tree) as load:
        for target in (scene.mnt, Path(record_of(scene).device)):
            before = record_of(scene)
            os.kill(before.supervisor, signal.SIGKILL)
            os.kill(before.pid, signal.SIGKILL)
            until(lambda b=before: not b.alive() and not b.supervised(), "the end of both")
            assert scene.run("reattach", target) == Done(0, "", "")
            assert record_of(scene).alive() and record_of(scene).supervised()
            load.go_on()
    by_pyerofs(scene)


def test_upgrade_while_reads_go_on(scene: Scene, tree: Tree, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    with Load(scene.mnt, tree) as load:
        load.go_on()
        for _ in range(3):
            before = record_of(scene)
            began = time.monotonic()
            done = scene.run("reattach", "--all")
            assert done.status == 0 and "has a new daemon" in done.error
            print(f"handed over in {time.monotonic() - began:.2f} s")
            assert record_of(scene).pid != before.pid and record_of(scene).restarts == 0
            assert not before.alive() and not before.supervised()
            load.go_on()
    print(f"{load.reads} reads, the longest {load.longest:.2f} s")
    by_pyerofs(scene)


def test_disconnect(scene: Scene, published: Published, images: Images) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    file = (scene.mnt / "text").open("rb")
    with file:
        assert scene.run("disconnect", record_of(scene).device) == Done(0, "", "")
        drop_caches()
        assert not scene.mnt.is_mount()
    scene.nothing_left()


def test_unmounted_while_nobody_serves(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    before = record_of(scene)
    os.kill(before.supervisor, signal.SIGSTOP)
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: not before.alive(), "its end")
    subprocess.run(["umount", scene.mnt], check=True)
    os.kill(before.supervisor, signal.SIGCONT)
    scene.nothing_left()
