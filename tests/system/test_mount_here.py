"""`mount -t erofs.fuse`, `-t erofs.local` and `umount` on this machine: no emulator, but no NBD either."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyerofs.kernel import mountpoint
from tests.support.images import Images, Published
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, by_mount_u, by_pyerofs, by_umount
from tests.support.trees import Tree, assert_same

Unmount = Callable[[Scene], object]


ways = pytest.mark.parametrize("unmount", [by_umount, by_pyerofs, by_mount_u])


def find(scene: Scene) -> mountpoint.MountInfo:
    found = mountpoint.find(str(scene.mnt))
    assert found is not None
    return found


# -t erofs.fuse


@ways
@pytest.mark.parametrize("name", ["plain", "lz4"])
@pytest.mark.usefixtures("nbdfuse")
def test_fuse_shows_the_whole_tree(scene: Scene, tree: Tree, published: Published, name: str, unmount: Unmount) -> None:
    scene.mount_image(getattr(published, name), "oci=0", "oci.platform=linux/amd64", fstype="erofs.fuse")
    assert find(scene).fstype == "erofs"
    assert "ro" in find(scene).options.split(",")
    assert_same(tree.entries, scene.mnt)
    unmount(scene)
    scene.nothing_left()


@pytest.mark.usefixtures("nbdfuse")
def test_fuse_of_a_local_file(scene: Scene, tree: Tree, images: Images) -> None:
    scene.mount(images.plain, fstype="erofs.fuse")
    assert_same(tree.entries, scene.mnt)
    by_umount(scene)
    scene.nothing_left()


@pytest.mark.usefixtures("nbdfuse")
def test_a_mount_is_lazy_and_the_next_one_asks_for_nothing(
    scene: Scene, published: Published, registry: LoggingRegistry, images: Images
) -> None:
    before = len(registry.requests())
    scene.mount_image(published.plain, fstype="erofs.fuse")
    assert (scene.mnt / "hello").read_bytes() == b"hello, world\n"
    cached = sum(path.stat().st_blocks * 512 for path in scene.cache.rglob("data"))
    assert cached < images.plain.stat().st_size / 2
    by_pyerofs(scene)
    after = len(registry.requests())
    assert after > before
    scene.mount_image(published.plain, fstype="erofs.fuse")
    assert (scene.mnt / "hello").read_bytes() == b"hello, world\n"
    by_pyerofs(scene)
    assert len(registry.requests()) == after


@pytest.mark.usefixtures("nbdfuse")
def test_auto_chooses_and_says_so(scene: Scene, published: Published, images: Images) -> None:
    done = scene.mount_image(published.plain)
    chosen = "nbd" if Path("/sys/block/nbd0").exists() else "fuse"
    assert f"driver {chosen}: " in done.error
    by_pyerofs(scene)
    assert "driver local: " in scene.mount(images.plain).error
    by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
def test_list_tells_of_a_mount(scene: Scene, published: Published, images: Images) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    row = next(row for row in json.loads(scene.run("list", "--json").out) if row["target"] == str(scene.mnt))
    assert row["source"] == published.plain
    assert (row["driver"], row["size"], row["layer"]) == ("fuse", images.plain.stat().st_size, 0)
    assert row["pid"] in scene.processes()
    assert str(scene.mnt) in scene.run("list").out
    by_pyerofs(scene)
    assert str(scene.mnt) not in scene.run("list").out


@pytest.mark.usefixtures("nbdfuse")
def test_two_mounts_of_one_image_share_its_bytes(
    scene: Scene, published: Published, registry: LoggingRegistry, tree: Tree
) -> None:
    second = scene.directory / "second"
    second.mkdir()
    scene.mount_image(published.plain, fstype="erofs.fuse")
    scene.mount_image(published.plain, fstype="erofs.fuse", target=second)
    assert_same(tree.entries, scene.mnt)
    before = len(registry.requests())
    assert_same(tree.entries, second)
    assert len(registry.requests()) == before
    subprocess.run(["umount", scene.mnt, second], check=True)
    scene.nothing_left()


@pytest.mark.usefixtures("nbdfuse")
@pytest.mark.parametrize(("options", "content"), [
    (["oci=0"], "other"),
    (["oci.layer=1"], "hello"),
])  # fmt: skip
def test_a_layer_of_several(scene: Scene, published: Published, options: list[str], content: str) -> None:
    scene.mount_image(published.two, *options, fstype="erofs.fuse")
    assert (scene.mnt / content).exists()
    by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
def test_the_platform_that_was_asked_for(scene: Scene, published: Published) -> None:
    scene.mount_image(published.of_platforms, "oci.platform=linux/arm64", fstype="erofs.fuse")
    assert (scene.mnt / "other").read_bytes() == b"another tree\n"
    by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
def test_a_busy_unmount_says_so_and_leaves_the_mount(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    with (scene.mnt / "hello").open("rb") as file:
        done = scene.run("umount", scene.mnt)
        assert done.status == 32
        assert "busy" in done.error
        assert file.read() == b"hello, world\n"
    by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
def test_relative_paths_are_meant_from_the_caller(scene: Scene, published: Published) -> None:
    assert scene.mount(published.plain, "oci.cache=here", fstype="erofs.fuse").status == 0
    assert (scene.directory / "here/sha256").is_dir()
    assert by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
def test_a_lazy_unmount_goes_when_its_last_user_does(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    with (scene.mnt / "hello").open("rb") as file:
        assert scene.run("umount", "-l", scene.mnt) == Done(0, "", "")
        assert file.read() == b"hello, world\n"
    scene.nothing_left()


@pytest.mark.usefixtures("nbdfuse")
def test_sigterm_to_the_daemon_unmounts(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    daemon = next(pid for pid, text in scene.processes().items() if "pyerofs.daemon.worker" in text)
    with (scene.mnt / "hello").open("rb") as file:
        os.kill(daemon, 15)
        assert file.read() == b"hello, world\n"
        assert find(scene).fstype == "erofs"  # it was busy
    with contextlib.suppress(ProcessLookupError):  # the first signal may have been looked at only now
        os.kill(daemon, 15)
    scene.nothing_left()


@pytest.mark.usefixtures("nbdfuse")
def test_flags_and_options_reach_the_kernel(scene: Scene, images: Images) -> None:
    scene.mount(images.plain, "nosuid,nodev,noexec,noatime,cache_strategy=disabled", fstype="erofs.fuse")
    found = find(scene)
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(found.options.split(","))
    by_pyerofs(scene)


# -t erofs.local


@ways
@pytest.mark.parametrize("option", ["ro", "loop"])
@pytest.mark.parametrize("name", ["plain", "lz4"])
def test_local_shows_the_whole_tree(
    scene: Scene, tree: Tree, images: Images, name: str, option: str, unmount: Unmount
) -> None:
    image = shutil.copy(getattr(images, name), scene.directory / "image")
    scene.mount(image, option, fstype="erofs.local")
    assert find(scene).source.startswith("/dev/loop") == (option == "loop")
    assert_same(tree.entries, scene.mnt)
    unmount(scene)
    scene.nothing_left()


def test_local_takes_a_block_device(scene: Scene, tree: Tree, images: Images) -> None:
    image = shutil.copy(images.plain, scene.directory / "image")
    made = subprocess.run(["losetup", "--find", "--show", "--read-only", image], check=True, capture_output=True)
    device = made.stdout.decode().strip()
    try:
        scene.mount(device, fstype="erofs")
        assert_same(tree.entries, scene.mnt)
        by_umount(scene)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    scene.nothing_left()


def test_local_of_a_relative_path(scene: Scene, images: Images) -> None:
    shutil.copy(images.other, scene.directory / "image")
    scene.mount("image", fstype="erofs.local")
    assert (scene.mnt / "other").exists()
    by_pyerofs(scene)


def test_rw_is_turned_into_ro_with_a_warning(scene: Scene, images: Images) -> None:
    done = scene.run("mount", "-t", "erofs.local", "-o", "rw", images.other, scene.mnt)
    assert done.status == 0
    assert "read-only" in done.error
    assert "ro" in find(scene).options.split(",")
    by_pyerofs(scene)
    assert scene.run("mount", "-q", "-t", "erofs.local", "-o", "rw", images.other, scene.mnt) == Done(0, "", "")
    by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
def test_the_end_of_nbdfuse_ends_the_daemon(scene: Scene, published: Published) -> None:
    """Nothing can be read any more; but nothing hangs either."""
    scene.mount_image(published.plain, fstype="erofs.fuse")
    os.kill(next(pid for pid, text in scene.processes().items() if text.startswith("nbdfuse")), 9)
    subprocess.run(["umount", "-l", scene.mnt], check=True)
    scene.nothing_left()


def test_through_python(
    scene: Scene, published: Published, tree: Tree, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyerofs

    for name, value in scene.environment.items():
        monkeypatch.setenv(name, value)
    pyerofs.mount(published.plain, str(scene.mnt), ["oci=0", f"oci.cache={scene.cache}"], fstype="erofs.fuse")
    assert_same(tree.entries, scene.mnt)
    pyerofs.unmount(str(scene.mnt))
    assert scene.leftovers() == []
    pyerofs.mount(str(images.lz4), str(scene.mnt))
    assert_same(tree.entries, scene.mnt)
    pyerofs.unmount(str(scene.mnt))
    with pytest.raises(pyerofs.PyerofsError, match="not a mount point"):
        pyerofs.unmount(str(scene.mnt))
