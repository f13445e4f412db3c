"""What goes wrong with `mount` and `umount` on this machine: one line, mount(8)'s status, nothing left."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pyerofs.kernel.mountpoint import mountinfo
from tests.support.images import FakePusher, Images, Layer, Published, push_image
from tests.support.needs import need
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene, by_pyerofs, by_umount


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
    ("of_platforms", ["oci.platform=linux/s390x"], "linux/s390x"),
    ("two", ["oci=7"], "7"),
    ("two", ["oci.blob=" + "0" * 64], "0" * 64),
    ("tar", ["oci.convert=no"], "tar"),
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
    from tests.support.fakeregistry import FakeRegistry

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
    (["remount"], "is not a mount of pyerofs"),
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
    """mount(2) refuses the same device on the same directory; without --over it is not even tried."""
    image = shutil.copy(images.other, scene.directory / "image")
    made = subprocess.run(["losetup", "--find", "--show", "--read-only", image], check=True, capture_output=True)
    device = made.stdout.decode().strip()
    try:
        scene.mount(device)
        done = scene.run("mount", device, scene.mnt)
        assert done.status == 0 and "already mounted" in done.error
        done = scene.run("mount", "--over", device, scene.mnt)
        assert done.status == 32
        assert "already mounted" in done.error
        assert len([found for found in mountinfo() if found.target == str(scene.mnt)]) == 1
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
    each: tuple[list[str | Path], ...] = (
        ["umount", scene.mnt],
        ["mount", "-u", scene.mnt],
        ["umount", scene.directory / "missing"],
    )
    for arguments in each:
        done = scene.run(*arguments)
        assert done.status in (1, 32)
        assert "is not a mount point" in done.error or "does not exist" in done.error


def test_umount_leaves_other_filesystems_alone(scene: Scene) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", scene.mnt], check=True)
    done = scene.run("umount", scene.mnt)
    assert done.status == 1
    assert "tmpfs" in done.error
    assert scene.mnt.is_mount()
    by_umount(scene)
