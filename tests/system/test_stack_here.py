"""Whole images on this machine (-t erofs.fuse): every layer attached and stacked, one mount point, one daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyerofs.daemon.record import DIRECTORY, read_all
from pyerofs.kernel import mountpoint, overlay
from tests.mounting.test_mount import Caller, calling
from tests.support.fakeregistry import FakeRegistry, short, stall
from tests.support.images import FakePusher, Images, Layer, Published, push_image
from tests.support.needs import need
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, by_mount_u, by_pyerofs, by_umount, until
from tests.support.stacks import Stack, make_stack, small, with_data, with_device, with_role
from tests.support.trees import Tree, assert_same

FUSE = "erofs.fuse"


@pytest.fixture(autouse=True)
def needs() -> None:
    need("nbdfuse", "libnbd-bin")


@pytest.fixture(scope="module")
def stack(work: Path, tree: Tree) -> Stack:
    return make_stack(work, tree.root)


@pytest.fixture(scope="module")
def stacked(registry: LoggingRegistry, stack: Stack) -> str:
    push_image(registry, "app", "stack", stack.layers)
    return f"{registry.host}/app:stack"


def push(registry: LoggingRegistry, scene: Scene, layers: list[Layer]) -> str:
    tag = scene.directory.name.replace("[", "-").replace("]", "")
    push_image(registry, "app", tag, layers)
    return f"{registry.host}/app:{tag}"


def find(scene: Scene) -> mountpoint.MountInfo:
    found = mountpoint.find(str(scene.mnt))
    assert found is not None
    return found


def row_of(scene: Scene) -> dict[str, Any]:
    rows = [row for row in json.loads(scene.run("list", "--json").out) if row["target"] == str(scene.mnt)]
    assert len(rows) == 1
    return dict(rows[0])


def daemons(scene: Scene, what: str = "pyerofs.daemon.worker") -> list[int]:
    return [pid for pid, text in scene.processes().items() if what in text]


# What is seen


@pytest.mark.parametrize("unmount", [by_umount, by_pyerofs, by_mount_u])
def test_the_whole_tree(scene: Scene, stack: Stack, stacked: str, unmount: Callable[[Scene], object]) -> None:
    scene.mount_image(stacked, "nosuid", "cache_strategy=disabled", fstype=FUSE)
    assert find(scene).fstype == "overlay"
    assert {"ro", "nosuid"} <= set(find(scene).options.split(","))
    assert_same(stack.entries, scene.mnt)
    assert len(daemons(scene)) == 1
    unmount(scene)
    scene.nothing_left()


def test_nothing_but_the_mount_point_is_seen(scene: Scene, stacked: str) -> None:
    before = {(m.target, m.source) for m in mountpoint.mountinfo()}
    scene.mount_image(stacked, fstype=FUSE)
    [record] = [r for r in read_all() if r.target == str(scene.mnt)]
    ours = (str(scene.directory), os.path.join(DIRECTORY, record.id))
    new = {(m.target, m.source) for m in mountpoint.mountinfo() if m.target.startswith(ours)} - before
    assert new == {(str(scene.mnt), stacked)} | {(os.path.dirname(p.device), "/dev/fuse") for p in record.parts}
    by_pyerofs(scene)


def test_list_shows_one_mount_with_its_parts(scene: Scene, stack: Stack, stacked: str) -> None:
    scene.mount_image(stacked, fstype=FUSE)
    row = row_of(scene)
    assert (row["source"], row["driver"], row["pid"]) == (stacked, "fuse", daemons(scene)[0])
    assert row["size"] == sum(len(layer.data) for layer in stack.layers)
    assert (row["digest"], row["layer"]) == ("", -1)
    shown = [(part["layer"], part["digest"], part["size"], part["role"], part["how"]) for part in row["parts"]]
    assert shown == [(n, layer.digest, len(layer.data), "lower", "fuse") for n, layer in enumerate(stack.layers)]
    line = next(line for line in scene.run("list", "--no-trunc").out.splitlines() if str(scene.mnt) in line)
    assert all(part["device"] in line for part in row["parts"])
    by_pyerofs(scene)


def test_stat_adds_the_parts_up(scene: Scene, stack: Stack, stacked: str) -> None:
    scene.mount_image(stacked, fstype=FUSE)
    assert (scene.mnt / "large").read_bytes()
    found = json.loads(scene.run("stat", "--json", scene.mnt).out)
    caches = [part["cache"] for part in found["parts"]]
    for key in ("size_bytes", "present_bytes"):
        assert found["cache"][key] == sum(cache[key] for cache in caches)
    assert [cache["size_bytes"] for cache in caches] == [len(layer.data) for layer in stack.layers]
    assert all(cache["present_bytes"] > 0 for cache in caches)
    assert found["reads"]["hits"] + found["reads"]["misses"] >= found["reads"]["latency"]["count"] > 3
    said = scene.run("stat", scene.mnt).out
    for number, layer in enumerate(stack.layers):
        assert f"layer {number:<3} {layer.digest}, {found['parts'][number]['device']}, by fuse, " in said
    by_pyerofs(scene)


@pytest.mark.parametrize(("options", "content"), [
    (["oci=0"], "hello, world\n"), (["oci.layer=2"], "hello again\n"), (["oci.layers=1"], "hello, world\n"),
])  # fmt: skip
def test_one_layer_as_before(scene: Scene, stacked: str, options: list[str], content: str) -> None:
    scene.mount_image(stacked, *options, fstype=FUSE)
    assert find(scene).fstype == "erofs"
    assert (scene.mnt / "hello").read_text() == content
    assert len(row_of(scene)["parts"]) == 1
    by_pyerofs(scene)


def test_the_same_layer_twice(scene: Scene, registry: LoggingRegistry, images: Images) -> None:
    layers = [Layer(images.other), small(scene.directory, "between", {"other": b"changed"}), Layer(images.other)]
    scene.mount_image(push(registry, scene, layers), fstype=FUSE)
    assert (scene.mnt / "other").read_bytes() == b"another tree\n"
    by_pyerofs(scene)


def test_a_hundred_layers(scene: Scene, registry: LoggingRegistry) -> None:
    layers = [small(scene.directory, str(n), {"last": b"%d" % n, f"d/{n}": b"%d" % n}) for n in range(100)]
    scene.mount_image(push(registry, scene, layers), fstype=FUSE)
    assert (scene.mnt / "last").read_bytes() == b"99"
    assert {path.name: path.read_text() for path in (scene.mnt / "d").iterdir()} == {str(n): str(n) for n in range(100)}
    assert len(row_of(scene)["parts"]) == 100
    by_pyerofs(scene)


# Roles


def test_a_device_of_the_only_layer(scene: Scene, registry: LoggingRegistry) -> None:
    content = os.urandom(70_000)
    reference = push(registry, scene, list(with_device(scene.directory, "far", content)))
    for options in ([], ["oci=1"]):
        scene.mount_image(reference, *options, fstype=FUSE)
        assert find(scene).fstype == "erofs"  # mounted by itself
        assert (scene.mnt / "far").read_bytes() == content
        assert [part["role"] for part in row_of(scene)["parts"]] == ["device", "lower"]
        by_pyerofs(scene)


def test_devices_and_data_in_a_stack(scene: Scene, registry: LoggingRegistry) -> None:
    contents = {name: os.urandom(50_000) for name in ("one", "two", "lent")}
    layers = [layer for name in ("one", "two") for layer in with_device(scene.directory, name, contents[name])]
    layers[2:2] = with_data(scene.directory, "lent", contents["lent"])
    reference = push(registry, scene, layers)
    scene.mount_image(reference, fstype=FUSE)
    assert {path.name: path.read_bytes() for path in scene.mnt.iterdir()} == contents
    roles = [part["role"] for part in row_of(scene)["parts"]]
    assert roles == ["device", "lower", "data", "lower", "device", "lower"]
    by_pyerofs(scene)
    scene.mount_image(reference, "oci=3", fstype=FUSE)
    assert {path.name: path.read_bytes() for path in scene.mnt.iterdir()} == {"lent": contents["lent"]}
    assert [part["role"] for part in row_of(scene)["parts"]] == ["data", "lower"]
    by_pyerofs(scene)


# A writable mount


def test_an_upper_directory(scene: Scene, stacked: str, stack: Stack) -> None:
    for name in ("up", "work"):
        (scene.directory / name).mkdir()
    upper = ["oci.upperdir=up", "oci.workdir=work"]  # as seen from the caller
    scene.mount_image(stacked, *upper, "rw", fstype=FUSE)
    assert "rw" in find(scene).options.split(",")
    (scene.mnt / "hello").write_bytes(b"written\n")
    (scene.mnt / "page" / "was a file").unlink()
    by_pyerofs(scene)
    assert (scene.directory / "up" / "hello").read_bytes() == b"written\n"
    assert (scene.directory / "up" / "page" / "was a file").is_char_device()
    scene.mount_image(stacked, *upper, fstype=FUSE)  # ro
    assert (scene.mnt / "hello").read_bytes() == b"written\n"
    with pytest.raises(OSError, match="Read-only"):
        (scene.mnt / "hello").write_bytes(b"again")
    by_pyerofs(scene)
    scene.mount_image(stacked, fstype=FUSE)
    assert_same(stack.entries, scene.mnt)
    by_pyerofs(scene)


@pytest.mark.parametrize("arguments", [[], ["-r"]])
def test_an_upper_directory_over_one_layer(scene: Scene, published: Published, arguments: list[str]) -> None:
    for name in ("up", "work"):
        (scene.directory / name).mkdir()
    options = f"oci.upperdir=up,oci.workdir=work,oci.cache={scene.cache}"
    done = scene.run("mount", "-t", FUSE, *arguments, "-o", options, published.plain, scene.mnt)
    assert done == Done(0, "", "")
    assert (scene.mnt / "hello").read_bytes() == b"hello, world\n"
    if arguments:
        assert "ro" in find(scene).options.split(",")
    else:
        (scene.mnt / "new").touch()
    by_pyerofs(scene)
    assert (scene.directory / "up" / "new").exists() == (not arguments)


# Its end


def test_a_busy_unmount_and_a_lazy_one(scene: Scene, stacked: str) -> None:
    scene.mount_image(stacked, fstype=FUSE)
    with (scene.mnt / "text").open("rb") as file:
        done = scene.run("umount", scene.mnt)
        assert done.status == 32 and "busy" in done.error
        assert scene.run("umount", "-l", scene.mnt) == Done(0, "", "")
        assert file.read(6) == b"line 0"
    scene.nothing_left()


def test_sigterm_to_the_daemon_unmounts(scene: Scene, stacked: str) -> None:
    scene.mount_image(stacked, fstype=FUSE)
    os.kill(daemons(scene)[0], signal.SIGTERM)
    scene.nothing_left()


def test_one_part_that_dies_leaves_the_others(scene: Scene, stacked: str) -> None:
    scene.mount_image(stacked, fstype=FUSE)
    top = row_of(scene)["parts"][-1]["device"]
    os.kill(next(pid for pid, text in scene.processes().items() if text.startswith("nbdfuse") and top in text), 9)
    assert (scene.mnt / "text").read_bytes().startswith(b"line 0\n")
    assert (scene.mnt / "large").stat().st_size == len((scene.mnt / "large").read_bytes())
    assert len(daemons(scene)) == 1
    subprocess.run(["umount", scene.mnt], check=True)
    scene.nothing_left()


def test_a_mount_whose_daemon_is_dead_can_be_unmounted(scene: Scene, stacked: str) -> None:
    scene.mount_image(stacked, fstype=FUSE)
    [record] = [r for r in read_all() if r.target == str(scene.mnt)]
    os.kill(record.pid, signal.SIGKILL)
    until(lambda: not record.alive(), "its end")
    assert scene.run("umount", "-l", scene.mnt) == Done(0, "", "")
    assert not scene.mnt.is_mount()
    scene.nothing_left()


def test_another_overlay_is_not_ours(scene: Scene, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    mountpoint.mount("overlay", str(scene.mnt), "overlay", 1, f"lowerdir={tmp_path}/a:{tmp_path}/b")
    done = scene.run("umount", scene.mnt)
    assert done.status == 1 and "is a overlay filesystem" in done.error
    assert str(scene.mnt) not in scene.run("list").out
    by_umount(scene)


# Failures half-way


def attached(caller: Caller, reference: str) -> dict[str, Any]:
    caller.ask(reference, f"oci.cache={caller.scene.cache}")
    return dict(caller.receive()["mount"])


def test_a_caller_that_goes_before_its_mount(scene: Scene, stacked: str) -> None:
    with calling(scene) as caller:
        what = attached(caller, stacked)
        assert len(what["layers"]) == 3 and os.listdir(what["directory"]) == []
        caller.hang_up()
        assert caller.ended() == (0, b"")
        assert scene.leftovers() == []


def test_a_caller_that_goes_right_after_its_mount(scene: Scene, stacked: str) -> None:
    with calling(scene) as caller:
        what = attached(caller, stacked)
        layers = [overlay.Lower(layer["path"], "") for layer in what["layers"]]
        overlay.mount_stack(layers, what["source"], str(scene.mnt), what["directory"], mountpoint.MS_RDONLY)
        assert scene.mnt.is_mount()
        caller.hang_up()
        assert caller.ended() == (0, b"")
        assert scene.leftovers() == []


def failing(scene: Scene, status: int, text: str, reference: str, *options: str, fstype: str = FUSE) -> None:
    joined = ",".join([f"oci.cache={scene.cache}", *options])
    done = scene.run("mount", "-t", fstype, "-o", joined, reference, scene.mnt)
    assert (done.status, done.out) == (status, ""), done.err
    assert text in done.error
    assert scene.leftovers() == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_layer_that_the_kernel_refuses(scene: Scene, registry: LoggingRegistry, number: int) -> None:
    layers = [small(scene.directory, str(n), {"a": b"x"}) for n in range(3)]
    bad = bytearray(layers[number].data)
    bad[1024 + 4] ^= 0xFF  # the checksum of the superblock
    layers[number] = Layer(bytes(bad))
    failing(scene, 32, f"layer {number}: cannot mount", push(registry, scene, layers))


@pytest.mark.parametrize(("spoil", "text"), [
    (lambda layers: layers.insert(1, Layer(b"no superblock" * 1000)), "not an EROFS image"),
    (lambda layers: layers.insert(1, Layer(b"x", "application/vnd.oci.image.layer.v1.tar")), "layer 1 is not EROFS"),
    (lambda layers: with_role(layers[2], "overlay-data"), "layer 2 has the role overlay-data"),
    (lambda layers: with_role(layers[1], "device"), "layer 2 needs 0 more devices, but the image has 1 for it"),
    (lambda layers: layers.append(Layer(layers[0].data[:4096], size=4096)), "truncated"),
])  # fmt: skip
def test_an_image_that_makes_no_stack(
    scene: Scene, registry: LoggingRegistry, spoil: Callable[[list[Layer]], object], text: str
) -> None:
    """Nothing is attached for it."""
    layers = [small(scene.directory, str(n), {"a": os.urandom(9000)}) for n in range(3)]
    spoil(layers)
    failing(scene, 32, text, push(registry, scene, layers))


def test_what_overlayfs_refuses(scene: Scene, stacked: str) -> None:
    failing(scene, 32, "overlayfs refused", stacked, "oci.upperdir=/proc/sys", "oci.workdir=/proc/tty")


@pytest.mark.parametrize(("options", "text"), [
    (["oci.upperdir=/tmp"], "together"),
    (["oci.workdir=/tmp"], "together"),
    (["oci.upperdir=/nowhere", "oci.workdir=/tmp"], "/nowhere"),
    (["oci.upperdir=/proc", "oci.workdir=/tmp"], "one filesystem"),
])  # fmt: skip
def test_wrong_options(scene: Scene, stacked: str, options: list[str], text: str) -> None:
    failing(scene, 1, text, stacked, *options)


def test_one_device_is_not_enough_for_a_stack(scene: Scene, stacked: str) -> None:
    failing(scene, 1, "needs 3", stacked, "nbd.device=/dev/nbd3", fstype="erofs.nbd")


def with_lost_root(layer: Layer) -> Layer:
    """The same with its root's inode far behind what is fetched to recognise an image."""
    data = bytearray(layer.data)
    data[1024 + 8] &= ~1  # no checksum of the superblock
    data[1024 + 14 : 1024 + 16] = (40_000).to_bytes(2, "little")
    return Layer(bytes(data))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_mount_that_is_ended_while_a_layer_waits(scene: Scene, fake: FakeRegistry, number: int) -> None:
    """The registry gives the second layer's superblock, and then says nothing more."""
    layers = [small(scene.directory, str(n), {"a": os.urandom(2 << 20)}) for n in range(2)]
    layers[1] = with_lost_root(layers[1])
    push_image(FakePusher(fake), "app", "1", layers)
    release, reached = threading.Event(), threading.Event()
    reading = ("read", "-o", f"oci=0,oci.cache={scene.cache}", f"{fake.host}/app:1")
    assert scene.start(*reading, stdout=subprocess.DEVNULL).wait(30) == 0
    fake.script(short(4096))
    fake.default = stall(release, reached=reached)
    options = f"oci.cache={scene.cache},oci.timeout=4"
    mount = scene.start("mount", "-t", FUSE, "-o", options, f"{fake.host}/app:1", scene.mnt)
    try:
        assert reached.wait(30)
        until(lambda: any("mount" in text for text in calls(mount.pid)), "that it is in mount(2)")
        mount.send_signal(number)
        _, errors = mount.communicate(timeout=30)
        assert "Traceback" not in errors
        assert mount.returncode == (8 if number == signal.SIGINT else -number)
        scene.nothing_left()
    finally:
        release.set()


def calls(pid: int) -> list[str]:
    """What the threads of a process are doing: the name of the first function of the kernel that says it."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        number = (task / "syscall").read_text().split()[0]
        found.append({"165": "mount"}.get(number, number))
    return found
