"""dm-verity over NBD in the real kernel: every byte is verified, wrong ones are I/O errors, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyerofs.daemon.launch import WorkerProcess
from pyerofs.kernel import mountpoint
from tests.guest.load import Load, alive_again, record_of
from tests.support.images import EROFS, Images, Layer, push_image
from tests.support.indexedlayers import compressed, raw
from tests.support.kernellog import KernelLog
from tests.support.needs import need
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, by_pyerofs, by_umount, until
from tests.support.stacks import small, with_device
from tests.support.trees import Tree, assert_same
from tests.support.veritytrees import add_tree, own_tree, with_tree

NBD = "erofs.nbd"


def mapped() -> list[str]:
    """The device-mapper devices of this kernel."""
    return [path.parent.parent.name for path in Path("/sys/block").glob("dm-*/dm/name")]


@pytest.fixture(autouse=True)
def nothing_left(scene: Scene) -> Iterator[None]:
    subprocess.run(["modprobe", "dm-verity"], check=True)  # it has something to say, which is no test's matter
    yield
    scene.nothing_left()
    until(lambda: not mapped(), "the end of every dm device")
    assert list(Path("/dev/mapper").glob("pyerofs*")) == []


@pytest.fixture
def quiet_kernel() -> Iterator[KernelLog]:
    log = KernelLog()
    yield log
    assert log.warnings() == []
    log.close()


def push(registry: LoggingRegistry, tag: str, *layers: Layer) -> str:
    push_image(registry, "verity", tag, list(layers))
    return f"{registry.host}/verity:{tag}"


def by_veritysetup(image: Path) -> tuple[bytes, dict[str, str]]:
    found = add_tree(image)
    return image.read_bytes(), found


def without_superblock(image: Path) -> tuple[bytes, dict[str, str]]:
    found = add_tree(image, "--salt=-", superblock=False)
    return image.read_bytes(), found


def by_us(image: Path) -> tuple[bytes, dict[str, str]]:
    found = own_tree(image)
    return image.read_bytes(), found


def bare(data: bytes, **annotations: str) -> Layer:
    return Layer(data, EROFS, annotations=annotations)


def indexed(data: bytes, **annotations: str) -> Layer:
    return raw(data, 128 << 10, **annotations)


def zstd(data: bytes, **annotations: str) -> Layer:
    layer = compressed(data)
    kept = layer.descriptor["annotations"]
    assert isinstance(kept, dict)
    layer.descriptor["annotations"] = {**kept, **annotations}
    return layer


@pytest.mark.parametrize(("tree_of", "layer_of"), [
    (without_superblock, bare),
    (by_us, indexed),
    (by_veritysetup, zstd),
])  # fmt: skip
def test_the_whole_tree(
    scene: Scene, tree: Tree, images: Images, registry: LoggingRegistry, quiet_kernel: KernelLog,
    tree_of: Callable[[Path], tuple[bytes, dict[str, str]]], layer_of: Callable[..., Layer],
) -> None:  # fmt: skip
    image = scene.directory / "image"
    image.write_bytes(images.plain.read_bytes())
    data, annotations = tree_of(image)
    reference = push(registry, f"{tree_of.__name__}-{layer_of.__name__}", layer_of(data, **annotations))
    scene.mount_image(reference, "oci.verity", fstype=NBD)
    record = record_of(scene)
    found = mountpoint.find(str(scene.mnt))
    assert found is not None and record.owns(found) and record.device == record.parts[0].verity
    table = subprocess.run(["dmsetup", "table", record.id], check=True, capture_output=True, text=True).stdout.split()
    assert table[2] == "verity" and annotations["org.erofs.dmverity.root_digest"].endswith(table[11])
    assert_same(tree.entries, scene.mnt)
    assert f"{record.device}, dm-verity over {record.parts[0].device}" in scene.run("stat", scene.mnt).out
    by_umount(scene)


def test_a_life(scene: Scene, tree: Tree, images: Images, registry: LoggingRegistry) -> None:
    """The daemon is killed, both are killed, the daemon is replaced; then everything is disconnected."""
    layer = with_tree(Layer(images.plain), scene.directory)
    scene.mount_image(push(registry, "life", layer), "oci.verity", fstype=NBD)
    device = record_of(scene).device
    with Load(scene.mnt, tree) as load:
        load.go_on()
        before = record_of(scene)
        os.kill(before.pid, signal.SIGKILL)
        load.go_on()
        before = alive_again(scene, before)
        os.kill(before.supervisor, signal.SIGKILL)
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: not before.alive() and not before.supervised(), "the end of both")
        assert scene.run("reattach", scene.mnt) == Done(0, "", "")
        load.go_on()
        assert scene.run("reattach", device) == Done(0, "", "")
        load.go_on()
    assert record_of(scene).parts[0].verity == device and mapped() == [Path(device).name]
    assert scene.run("disconnect", device) == Done(0, "", "")
    assert not scene.mnt.is_mount()


def test_unmounted_while_nobody_serves(scene: Scene, images: Images, registry: LoggingRegistry) -> None:
    layer = with_tree(Layer(images.other), scene.directory)
    scene.mount_image(push(registry, "nobody", layer), "oci.verity", fstype=NBD)
    before = record_of(scene)
    os.kill(before.supervisor, signal.SIGSTOP)
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: not before.alive(), "its end")
    subprocess.run(["umount", scene.mnt], check=True)
    os.kill(before.supervisor, signal.SIGCONT)


def test_a_stack_with_a_device(
    scene: Scene, images: Images, registry: LoggingRegistry, quiet_kernel: KernelLog
) -> None:
    far = [with_tree(layer, scene.directory) for layer in with_device(scene.directory, "far", b"far away" * 1024)]
    layers = [with_tree(Layer(images.other), scene.directory), *far]
    reference = push(registry, "stack", *layers)
    scene.mount_image(reference, "oci.verity=require", fstype=NBD)
    record = record_of(scene)
    assert len(mapped()) == 3 and {Path(part.verity).name for part in record.parts} == set(mapped())
    assert (scene.mnt / "far").read_bytes() == b"far away" * 1024
    assert (scene.mnt / "other").read_bytes() == b"another tree\n"
    assert scene.run("reattach", record.parts[1].verity) == Done(0, "", "")
    by_pyerofs(scene)


def test_layers_without_a_tree(scene: Scene, images: Images, registry: LoggingRegistry) -> None:
    layers = [with_tree(Layer(images.other), scene.directory), small(scene.directory, "bare", {"new": b"new"})]
    reference = push(registry, "partly", *layers)
    refused = scene.run("mount", "-t", NBD, "-o", f"oci.verity=require,oci.cache={scene.cache}", reference, scene.mnt)
    assert refused.status == 32 and "layer 1 has no dm-verity tree" in refused.error
    assert scene.leftovers() == [] and mapped() == []
    said = scene.mount_image(reference, "oci.verity=auto", fstype=NBD).err
    assert "layer 1 has no dm-verity tree" in said
    assert [bool(part.verity) for part in record_of(scene).parts] == [True, False]
    assert (scene.mnt / "new").read_bytes() == b"new"
    by_pyerofs(scene)
    assert not scene.mount_image(reference, fstype=NBD).err.count("verity")
    assert mapped() == []
    by_pyerofs(scene)


def test_a_wrong_byte_is_an_error(scene: Scene, tree: Tree, images: Images, registry: LoggingRegistry) -> None:
    """A blob with the digest that the manifest says, whose bytes are not those of the tree's root."""
    image = scene.directory / "image"
    image.write_bytes(images.plain.read_bytes())
    annotations = add_tree(image)
    data = bytearray(image.read_bytes())
    content = (tree.root / "page").read_bytes()
    at = data.index(content)
    data[at + 100] ^= 1
    scene.mount_image(push(registry, "wrong", bare(bytes(data), **annotations)), fstype=NBD)
    assert (scene.mnt / "page").read_bytes() != content  # without dm-verity nobody knows
    by_pyerofs(scene)
    scene.mount_image(push(registry, "wrong", bare(bytes(data), **annotations)), "oci.verity", fstype=NBD)
    with pytest.raises(OSError, match="Input/output error"):
        (scene.mnt / "page").read_bytes()
    assert (scene.mnt / "text").read_bytes() == (tree.root / "text").read_bytes()
    by_pyerofs(scene)


def test_by_fuse(scene: Scene, images: Images, registry: LoggingRegistry, quiet_kernel: KernelLog) -> None:
    """A loop device lies between."""
    reference = push(registry, "fuse", with_tree(Layer(images.other), scene.directory))
    scene.mount_image(reference, "oci.verity", fstype="erofs.fuse")
    record = record_of(scene)
    assert record.device == record.parts[0].verity and record.parts[0].device.endswith("/image")
    assert (scene.mnt / "other").read_bytes() == b"another tree\n"
    by_pyerofs(scene)


@pytest.mark.parametrize(("script", "error"), [
    ("exit 1", "veritysetup open: it ended with status 1"),
    ('[ "$1" = open ] || { echo no more >&2; rm "$0.fails"; exit 1; }', "veritysetup close: no more"),
], ids=["open", "close"])  # fmt: skip
def test_veritysetup_fails(scene: Scene, images: Images, registry: LoggingRegistry, script: str, error: str) -> None:
    """At the first of two devices, or when the removal is ordered: nothing is left behind."""
    programs = scene.directory / "programs"
    programs.mkdir()
    program = programs / "veritysetup"
    (programs / "veritysetup.fails").touch()
    real = f'exec {need("veritysetup", "cryptsetup-bin")} "$@"'
    program.write_text(f'#!/bin/sh\nif [ -e "$0.fails" ]; then {script}\nfi\n{real}\n')
    program.chmod(0o755)
    layers = [with_tree(Layer(images.other), scene.directory), small(scene.directory, "bare", {"new": b"new"})]
    options = f"oci.verity=auto,oci.cache={scene.cache}"
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    done = scene.run("mount", "-t", NBD, "-o", options, push(registry, "fails", *layers), scene.mnt, env=path)
    assert done.status == 32 and error in done.err
    assert scene.leftovers() == []


def test_a_wrong_root_digest_does_not_mount(scene: Scene, images: Images, registry: LoggingRegistry) -> None:
    layer = with_tree(Layer(images.other), scene.directory)
    annotations = layer.descriptor["annotations"]
    assert isinstance(annotations, dict)
    annotations["org.erofs.dmverity.root_digest"] = f"sha256:{'0' * 64}"
    reference = push(registry, "root", layer)
    refused = scene.run("mount", "-t", NBD, "-o", f"oci.verity,oci.cache={scene.cache}", reference, scene.mnt)
    assert refused.status == 32 and "could not be read" in refused.error
    assert scene.leftovers() == []


def test_a_daemon_that_dies_before_the_mount(scene: Scene, images: Images, registry: LoggingRegistry) -> None:
    """Nobody is left who could remove the dm-verity device."""
    reference = push(registry, "early", with_tree(Layer(images.other), scene.directory))
    daemon = WorkerProcess(str(scene.mnt))
    daemon.send(
        source=reference,
        fstype=NBD,
        options=[f"oci.verity,oci.cache={scene.cache}"],
        defaults=[],
        driver="nbd",
        target=str(scene.mnt),
        verbosity=0,
        directory="/",
        environment=scene.environment,
    )
    path = daemon.wait_for("mount", print)["layers"][0]["path"]
    assert mapped() == [Path(path).name]
    daemon.kill()
    until(lambda: not mapped(), "the end of the dm-verity device")
    assert scene.run("disconnect", record_of(scene).id) == Done(0, "", "")
