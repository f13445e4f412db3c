"""A whole system, converted and in a registry, mounted over NBD: every file as umoci unpacks it, and programs run.

The image is made, converted and pushed before the guest boots (tests/support/rootfs.py); PYEROFS_ROOTFS says where it
lies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dockerregistry import DockerRegistry
from tests.support.kernellog import KernelLog
from tests.support.rootfs import COMMANDS, expected, run_in
from tests.support.scene import Scene, by_umount
from tests.support.trees import assert_same


@pytest.fixture
def server() -> Iterator[DockerRegistry]:
    with DockerRegistry(Path(os.environ["PYEROFS_ROOTFS"]) / "registry") as server:
        yield server


@pytest.mark.qemu
def test_every_file_and_the_programs(scene: Scene, server: DockerRegistry) -> None:
    entries, said = expected(Path(os.environ["PYEROFS_ROOTFS"]))
    log = KernelLog()
    scene.mount_image(f"{server.host}/system:erofs", "oci.verify=require", fstype="erofs.nbd")
    assert [run_in(scene.mnt, command) for command in COMMANDS] == said
    assert_same(entries, scene.mnt)
    by_umount(scene)
    scene.nothing_left()
    assert log.warnings() == []
    log.close()
