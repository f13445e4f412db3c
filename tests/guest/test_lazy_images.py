"""Images with tables of contents over NBD in real kernels: every file as umoci unpacks it, also by a new worker."""

from __future__ import annotations

import os
import signal

import pytest

from tests.guest.load import alive_again, drop_caches, record_of
from tests.support import lazyscene, skopeo
from tests.support.kernellog import KernelLog
from tests.support.ordinary import Layout
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene, by_umount
from tests.support.trees import Entry, assert_same, survey


@pytest.fixture
def layout(scene: Scene) -> Layout:
    made = Layout(scene.directory / "layout")
    lazyscene.built(made)
    return made


def expected(scene: Scene, layout: Layout) -> dict[str, Entry]:
    return survey(skopeo.unpacked(f"{layout.path}:ordinary", scene.directory / "bundle"))


def test_whole_trees_in_6_1(scene: Scene, registry: LoggingRegistry, layout: Layout) -> None:
    """Of an image whose layers are all of one format, and of one with every format; also by a new worker."""
    entries = expected(scene, layout)
    for tag in ("containers", "mixed"):
        done = scene.mount_image(lazyscene.push(registry, layout.path, tag), fstype="erofs.nbd")
        assert "read whole" not in done.err and ("converting" in done.err) == (tag == "mixed")
        before = record_of(scene)
        assert {part.how for part in before.parts} == {"netlink"}
        os.kill(before.pid, signal.SIGKILL)
        assert alive_again(scene, before).restarts == 1
        assert_same(entries, scene.mnt)
        drop_caches()
        assert_same(entries, scene.mnt)
        by_umount(scene)
        scene.nothing_left()


@pytest.mark.qemu
def test_the_whole_tree_in_6_12(scene: Scene, registry: LoggingRegistry, layout: Layout) -> None:
    log = KernelLog()
    scene.mount_image(lazyscene.push(registry, layout.path, "mixed"), fstype="erofs.nbd")
    assert_same(expected(scene, layout), scene.mnt)
    by_umount(scene)
    scene.nothing_left()
    assert log.warnings() == []
    log.close()
