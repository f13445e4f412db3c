"""Whatever happens to our processes, the registry or the device: reads go on, every byte is right, nothing is left.

Each test runs under a load: threads that read files of the mount all the time, past the page cache, and compare them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pyerofs.daemon.record import Record
from tests.guest.load import RECOVERY, Load, alive_again, drop_caches, record_of
from tests.support.images import Images, Layer, Published, push_image
from tests.support.indexedlayers import compressed, raw, stream
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, by_pyerofs, until
from tests.support.trees import Tree

KILLS = int(os.environ.get("PYEROFS_KILLS", "2"))


def verified(data: bytes) -> Layer:
    return raw(data, 128 << 10)


@pytest.fixture(autouse=True)
def nothing_left(scene: Scene) -> Iterator[None]:
    yield
    scene.nothing_left()


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


def is_over(record: Record) -> bool:
    return not record.alive() and not record.supervised()


def test_reattach_when_both_are_dead(scene: Scene, tree: Tree, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    with Load(scene.mnt, tree) as load:
        for target in (scene.mnt, Path(record_of(scene).device)):
            before = record_of(scene)
            os.kill(before.supervisor, signal.SIGKILL)
            os.kill(before.pid, signal.SIGKILL)
            until(partial(is_over, before), "the end of both")
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


@pytest.mark.parametrize("make", [verified, compressed, stream])
def test_layers_that_are_checked_or_decompressed_go_on(
    scene: Scene, tree: Tree, images: Images, registry: LoggingRegistry, make: Callable[[bytes], Layer]
) -> None:
    push_image(registry, "kinds", make.__name__, [make(images.plain.read_bytes())])
    scene.mount_image(f"{registry.host}/kinds:{make.__name__}", fstype="erofs.nbd")
    with Load(scene.mnt, tree) as load:
        load.go_on()
        before = record_of(scene)
        os.kill(before.pid, signal.SIGKILL)
        alive_again(scene, before)
        load.go_on()
        assert scene.run("reattach", scene.mnt) == Done(0, "", "")
        load.go_on()
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
