"""`mount -t erofs.fuse`, `-t erofs.local` and `umount` on this machine: no emulator, but no NBD either."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from images import FakePusher, Images, Layer, Published, push_image
from needs import need
from realregistry import LoggingRegistry
from scene import Done, Scene
from trees import Tree, assert_same

from pyerofs import mountpoint

Unmount = Callable[[Scene], object]


def by_umount(scene: Scene) -> object:
    return subprocess.run(["umount", scene.mnt], check=True)


def by_pyerofs(scene: Scene) -> object:
    done = scene.run("umount", scene.mnt)
    assert done == Done(0, "", "")
    assert scene.leftovers() == []  # it waits for the daemon's end
    return done


def by_mount_u(scene: Scene) -> object:
    done = scene.run("mount", "-u", scene.mnt)
    assert done == Done(0, "", "")
    assert scene.leftovers() == []
    return done


ways = pytest.mark.parametrize("unmount", [by_umount, by_pyerofs, by_mount_u])


def find(scene: Scene) -> mountpoint.MountInfo:
    found = mountpoint.find(str(scene.mnt))
    assert found is not None
    return found


@pytest.fixture
def nbdfuse() -> None:
    need("nbdfuse", "libnbd-bin")


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
    import json

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
    scene.mount_image(published.index, "oci.platform=linux/arm64", fstype="erofs.fuse")
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
def test_a_lazy_unmount_goes_when_its_last_user_does(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    with (scene.mnt / "hello").open("rb") as file:
        assert scene.run("umount", "-l", scene.mnt) == Done(0, "", "")
        assert file.read() == b"hello, world\n"
    scene.nothing_left()


@pytest.mark.usefixtures("nbdfuse")
def test_sigterm_to_the_daemon_unmounts(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    daemon = next(pid for pid, text in scene.processes().items() if "pyerofs.worker" in text)
    with (scene.mnt / "hello").open("rb") as file:
        os.kill(daemon, 15)
        assert file.read() == b"hello, world\n"
        assert find(scene).fstype == "erofs"  # it was busy
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


# What goes wrong: one line, mount(8)'s status, nothing left


def fails(scene: Scene, status: int, text: str, source: str | Path, *options: str, fstype: str = "erofs.fuse") -> None:
    given = [f"oci.cache={scene.cache}"] if fstype == "erofs.fuse" and not str(source).startswith("/") else []
    done = scene.run("mount", "-t", fstype, "-o", ",".join(["ro", *given, *options]), source, scene.mnt)
    assert (done.status, done.out) == (status, ""), done.err
    assert text in done.error
    scene.nothing_left()


@pytest.mark.usefixtures("nbdfuse")
@pytest.mark.parametrize(("image", "options", "text"), [
    ("nowhere", [], "nowhere"),
    ("norepo", [], "norepo"),
    ("notag", [], "notag"),
    ("index", ["oci.platform=linux/s390x"], "linux/s390x"),
    ("two", [], "2"),
    ("two", ["oci=7"], "7"),
    ("two", ["oci.blob=" + "0" * 64], "0" * 64),
    ("tar", [], "tar"),
    ("tar", ["oci=0"], "tar"),
    ("liar", [], "EROFS"),
    ("cut", [], "bytes"),
])  # fmt: skip
def test_images_that_cannot_be_mounted(
    scene: Scene, published: Published, registry: LoggingRegistry, image: str, options: list[str], text: str
) -> None:
    host = registry.host
    names = {"norepo": f"{host}/norepo:1", "notag": f"{host}/app:notag", "nowhere": "nowhere.invalid/app:1"}
    fails(scene, 32, text, names.get(image) or getattr(published, image), *options)


@pytest.mark.usefixtures("nbdfuse")
def test_a_registry_that_does_not_listen(scene: Scene) -> None:
    import socket

    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        fails(scene, 32, "127.0.0.1", f"127.0.0.1:{unheard.getsockname()[1]}/app:1")


@pytest.mark.usefixtures("nbdfuse")
def test_a_registry_that_refuses_the_password(scene: Scene, images: Images) -> None:
    from fakeregistry import FakeRegistry

    with FakeRegistry() as fake:
        push_image(FakePusher(fake), "app", "1", [Layer(images.other)])
        fake.basic = ("me", "sesame")
        fails(scene, 32, "needs a user name and a password", f"{fake.host}/app:1")
        fails(scene, 32, "401", f"{fake.host}/app:1", "oci.username=me", "oci.password=open")
        scene.mount_image(f"{fake.host}/app:1", "oci.username=me", "oci.password=sesame", fstype="erofs.fuse")
        by_pyerofs(scene)


@pytest.mark.parametrize(("options", "text"), [
    (["oci.nonsense=1"], "oci.nonsense"),
    (["oci=x"], "oci"),
    (["oci=0", "oci.blob=" + "0" * 64], "exclude"),
    (["oci.username=me"], "password"),
    (["oci.platform=amd64"], "platform"),
    (["remount"], "remount"),
    (["bind"], "bind"),
    (["dax=sometimes"], "dax"),
])  # fmt: skip
def test_wrong_options(scene: Scene, options: list[str], text: str) -> None:
    fails(scene, 1, text, "localhost:1/app:1", *options)


@pytest.mark.parametrize("arguments", [["-t", "ext4", "a", "b"], ["only-a-source"], ["-d", "10", "a", "b"], []])
def test_wrong_invocations(scene: Scene, arguments: list[str]) -> None:
    done = scene.run("mount", *arguments)
    assert done.status == 1
    assert done.error


@pytest.mark.parametrize("fstype", ["erofs.fuse", "erofs.local", "erofs"])
@pytest.mark.parametrize(("target", "text"), [("missing", "No such file"), ("file", "not a directory")])
def test_mount_points_that_are_none(scene: Scene, images: Images, fstype: str, target: str, text: str) -> None:
    (scene.directory / "file").touch()
    done = scene.run("mount", "-t", fstype, images.other, scene.directory / target)
    assert done.status == 1
    assert text in done.error
    scene.nothing_left()


def test_a_busy_mount_point(scene: Scene, images: Images) -> None:
    """mount(2) refuses the same device on the same directory; anything else may be stacked, as mount(8) has it."""
    image = shutil.copy(images.other, scene.directory / "image")
    made = subprocess.run(["losetup", "--find", "--show", "--read-only", image], check=True, capture_output=True)
    device = made.stdout.decode().strip()
    try:
        scene.mount(device)
        done = scene.run("mount", device, scene.mnt)
        assert done.status == 32
        assert "already mounted" in done.error
        by_umount(scene)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    scene.nothing_left()


@pytest.mark.usefixtures("nbdfuse")
def test_what_the_kernel_refuses_leaves_nothing(scene: Scene, published: Published, images: Images) -> None:
    fails(scene, 32, "refused", images.other, "cache_strategy=disabled,no_such_option", fstype="erofs.local")
    fails(scene, 32, "refused", published.plain, "no_such_option")
    fails(scene, 32, "refused", images.other, "no_such_option")


@pytest.mark.parametrize("content", [b"", b"text" * 1000, bytes(8192)])
@pytest.mark.parametrize("fstype", ["erofs.fuse", "erofs.local"])
def test_local_files_that_are_no_images(scene: Scene, content: bytes, fstype: str) -> None:
    path = scene.directory / "image"
    path.write_bytes(content)
    fails(scene, 32, str(path), path, fstype=fstype)


def test_local_sources_that_are_none(scene: Scene) -> None:
    for fstype in ("erofs.fuse", "erofs.local", "erofs"):
        fails(scene, 1, "No such file", scene.directory / "missing", fstype=fstype)
        fails(scene, 1, "", "/dev/null", fstype=fstype)
    fails(scene, 1, "not a local file", "localhost:1/app:1", fstype="erofs.local")


@pytest.mark.parametrize("fstype", ["erofs.fuse", "erofs.local", "erofs"])
def test_only_root_may(scene: Scene, images: Images, fstype: str) -> None:
    nobody = (need("setpriv", "util-linux"), "--reuid=65534", "--regid=65534", "--clear-groups")
    scene.directory.chmod(0o755)
    done = scene.run("mount", "-t", fstype, images.other, scene.mnt, prefix=nobody, cwd=Path("/"))
    assert done.status == 1
    assert "root" in done.error
    scene.nothing_left()


def test_umount_of_what_is_not_mounted(scene: Scene) -> None:
    for arguments in (["umount", scene.mnt], ["mount", "-u", scene.mnt], ["umount", scene.directory / "missing"]):
        done = scene.run(*arguments)
        assert done.status in (1, 32)
        assert "not a mount point" in done.error


def test_umount_leaves_other_filesystems_alone(scene: Scene) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", scene.mnt], check=True)
    done = scene.run("umount", scene.mnt)
    assert done.status == 1
    assert "tmpfs" in done.error
    assert scene.mnt.is_mount()
    by_umount(scene)


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
