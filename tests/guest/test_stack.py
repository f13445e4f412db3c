"""Whole images over NBD in the real kernel: one mount, one daemon, many devices; and what survives what."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.kernel import mountpoint, nbd
from tests.guest.load import Load, alive_again, record_of
from tests.support.images import Layer, push_image
from tests.support.kernellog import KernelLog
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, by_pyerofs, by_umount, until
from tests.support.stacks import make_stack, small, with_data, with_device, write
from tests.support.trees import Tree, assert_same

NBD = "erofs.nbd"


@pytest.fixture(autouse=True)
def quiet_kernel(scene: Scene) -> Iterator[KernelLog]:
    log = KernelLog()
    yield log
    scene.nothing_left()
    # Of many devices at once it says that it says no more.
    assert [line for line in log.warnings() if "callbacks suppressed" not in line] == []
    log.close()


def push(registry: LoggingRegistry, tag: str, layers: list[Layer]) -> str:
    push_image(registry, "app", tag, layers)
    return f"{registry.host}/app:{tag}"


@pytest.fixture
def five(scene: Scene, registry: LoggingRegistry) -> tuple[str, Tree]:
    """An image of five layers, and what they hold together."""
    chance = random.Random(5)
    together = scene.directory / "together"
    layers = []
    for number in range(5):
        files = {f"layer {number}/{n}": chance.randbytes(100_000 + n) for n in range(6)}
        layers.append(small(scene.directory, f"five-{number}", files))
        for name, content in files.items():
            write(together / name, content)
    return push(registry, "five", layers), Tree(together, {})


def test_the_whole_tree(scene: Scene, tree: Tree, registry: LoggingRegistry) -> None:
    stack = make_stack(scene.directory, tree.root)
    scene.mount_image(push(registry, "stack", stack.layers), fstype=NBD)
    record = record_of(scene)
    found = mountpoint.find(str(scene.mnt))
    assert found is not None and (found.fstype, found.source) == ("overlay", record.source)
    backends = [Path("/sys/block", Path(part.device).name, "backend").read_text().strip() for part in record.parts]
    assert backends == [part.id for part in record.parts] == [record.id, f"{record.id}.1", f"{record.id}.2"]
    assert_same(stack.entries, scene.mnt)
    by_umount(scene)


def test_more_layers_than_there_are_devices(scene: Scene, registry: LoggingRegistry) -> None:
    before = len(list(Path("/sys/block").glob("nbd*")))
    layers = [small(scene.directory, f"many-{n}", {f"{n}": b"%d" % n}) for n in range(before + 2)]
    scene.mount_image(push(registry, "many", layers), fstype=NBD)
    assert sorted(os.listdir(scene.mnt), key=int) == [str(n) for n in range(before + 2)]
    by_pyerofs(scene)


@pytest.mark.qemu
def test_devices_and_data(scene: Scene, registry: LoggingRegistry) -> None:
    layers = [
        *with_device(scene.directory, "far", b"far away" * 1000),
        *with_data(scene.directory, "lent", b"lent" * 1000),
    ]
    scene.mount_image(push(registry, "roles", layers), fstype=NBD)
    assert (scene.mnt / "far").read_bytes() == b"far away" * 1000
    assert (scene.mnt / "lent").read_bytes() == b"lent" * 1000
    by_umount(scene)


def test_a_life(scene: Scene, five: tuple[str, Tree], quiet_kernel: KernelLog) -> None:
    """The daemon is killed, both are killed, the daemon is replaced; then everything is disconnected."""
    reference, tree = five
    scene.mount_image(reference, fstype=NBD)
    with Load(scene.mnt, tree) as load:
        load.go_on()
        before = record_of(scene)
        os.kill(before.pid, signal.SIGKILL)
        assert alive_again(scene, before).restarts == 1
        load.go_on()
        before = record_of(scene)
        os.kill(before.supervisor, signal.SIGKILL)
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: not before.alive() and not before.supervised(), "the end of both")
        assert scene.run("reattach", scene.mnt) == Done(0, "", "")
        load.go_on()
        before = record_of(scene)
        assert scene.run("reattach", before.parts[3].device) == Done(0, "", "")
        assert record_of(scene).pid != before.pid and record_of(scene).restarts == before.restarts
        load.go_on()
    print(f"{load.reads} reads, the longest {load.longest:.2f} s")
    quiet_kernel.warnings()  # of sockets that died
    assert scene.run("disconnect", record_of(scene).parts[1].device) == Done(0, "", "")
    assert not scene.mnt.is_mount()
    quiet_kernel.warnings()


def test_one_device_that_is_lost_leaves_the_others(
    scene: Scene, five: tuple[str, Tree], quiet_kernel: KernelLog
) -> None:
    reference, tree = five
    scene.mount_image(reference, fstype=NBD)
    record = record_of(scene)
    nbd.disconnect(record.parts[2].device)
    os.kill(record.pid, signal.SIGKILL)
    assert alive_again(scene, record).restarts == 1
    for number in (0, 1, 3, 4):
        for path in (tree.root / f"layer {number}").iterdir():
            assert (scene.mnt / path.relative_to(tree.root)).read_bytes() == path.read_bytes()
    by_pyerofs(scene)
    quiet_kernel.warnings()  # of the lost one


def test_unmounted_while_nobody_serves(scene: Scene, five: tuple[str, Tree], quiet_kernel: KernelLog) -> None:
    scene.mount_image(five[0], fstype=NBD)
    before = record_of(scene)
    os.kill(before.supervisor, signal.SIGSTOP)
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: not before.alive(), "its end")
    subprocess.run(["umount", scene.mnt], check=True)
    os.kill(before.supervisor, signal.SIGCONT)
    scene.nothing_left()
    quiet_kernel.warnings()
