"""`mount -t erofs.fuse`, `-t erofs.local` and `umount` on this machine: no emulator, but no NBD either."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fakeregistry import FakeRegistry
from images import FakePusher, Images, Layer, Published, push_image
from needs import need
from realregistry import LoggingRegistry
from scene import Done, Scene, by_mount_u, by_pyerofs, by_umount, until
from trees import Tree, assert_same

from pyerofs import mountpoint
from pyerofs.record import DIRECTORY, start_of

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


# What has died

NBDFUSE = "nbdfuse --readonly"


def pid_of(scene: Scene, what: str) -> int:
    return next(pid for pid, text in scene.processes().items() if what in text)


def kill(scene: Scene, *whats: str) -> None:
    """At once, so that none of them sees another's end."""
    pids = [pid_of(scene, what) for what in whats]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(start_of(pid) for pid in pids), "their end")


def row_of(scene: Scene) -> dict[str, object]:
    (row,) = [row for row in json.loads(scene.run("list", "--json").out) if row["target"] == str(scene.mnt)]
    assert isinstance(row, dict)
    return row


def is_up(scene: Scene) -> list[str]:
    text = scene.run("metrics").out
    return [line[-1] for line in text.splitlines() if line.startswith("pyerofs_up{") and f'"{scene.mnt}"' in line]


def says_that_it_is_dead(scene: Scene) -> None:
    assert row_of(scene)["health"] == "dead"
    assert (row_of(scene)["driver"], is_up(scene)) == ("fuse", ["0"])


@pytest.mark.usefixtures("nbdfuse")
def test_a_mount_whose_daemon_was_killed_is_dead_and_leaves_nothing(scene: Scene, published: Published) -> None:
    log = scene.directory / "log"
    scene.mount_image(published.plain, f"log.to={log}", fstype="erofs.fuse")
    kill(scene, "pyerofs.worker")
    says_that_it_is_dead(scene)
    done = scene.run("stat", scene.mnt)
    assert (done.status, published.plain in done.out) == (32, True)
    assert "  dead      its daemon has died" in done.out
    until(lambda: "has died, and nothing more can be read" in log.read_text(), "a line in the log")
    assert json.loads(log.read_text().splitlines()[-1])["level"] == "error"
    done = scene.run("reattach", "--all")
    assert done.status == 32 and f"{scene.mnt}: its daemon has died" in done.err
    by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
def test_a_mount_whose_daemon_was_killed_leaves_nothing_to_umount_8(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    kill(scene, "pyerofs.worker")
    by_umount(scene)
    scene.nothing_left()


@pytest.mark.usefixtures("nbdfuse")
@pytest.mark.parametrize("record", [True, False])
def test_a_mount_whose_processes_were_all_killed_leaves_nothing(
    scene: Scene, published: Published, record: bool
) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    source = find(scene).source
    kill(scene, "pyerofs.worker", "pyerofs.supervisor")
    if not record:
        os.unlink(f"{os.path.dirname(source)}.json")
    says_that_it_is_dead(scene)
    by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
@pytest.mark.parametrize("gone", ["record", "mount", "nbdfuse", "directory"])
def test_what_has_outlived_its_mount_is_swept(scene: Scene, published: Published, gone: str) -> None:
    """By whatever is left of it."""
    scene.mount_image(published.plain, fstype="erofs.fuse")
    directory = os.path.dirname(find(scene).source)
    kill(scene, "pyerofs.worker", "pyerofs.supervisor")
    by_umount(scene)
    if gone == "record":
        os.unlink(f"{directory}.json")
        os.unlink(f"{directory}.sock")
        assert directory in scene.run("list").out
        assert f'pyerofs_up{{target="{directory}"' in scene.run("metrics").out
    if gone in ("mount", "directory"):
        subprocess.run(["umount", "-l", directory], check=True)
    if gone == "nbdfuse":
        kill(scene, NBDFUSE)
    if gone == "directory":
        os.rmdir(directory)
        os.unlink(f"{directory}.json")
    left = [name for name in os.listdir(DIRECTORY) if name.startswith(os.path.basename(directory))]
    assert left or scene.processes()
    assert scene.run("reattach", "--all").status == 0
    assert not any(name.startswith(os.path.basename(directory)) for name in os.listdir(DIRECTORY))
    assert scene.leftovers() == []


@pytest.mark.usefixtures("nbdfuse")
def test_what_lives_is_not_swept(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    directory = os.path.dirname(find(scene).source)
    shutil.copy(f"{directory}.json", scene.directory)
    os.unlink(f"{directory}.json")
    assert scene.run("reattach", "--all").status == 0
    assert (scene.mnt / "hello").read_bytes() == b"hello, world\n"
    shutil.copy(scene.directory / f"{os.path.basename(directory)}.json", f"{directory}.json")
    by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
def test_a_mount_whose_nbdfuse_was_killed_is_dead_and_leaves_nothing(scene: Scene, published: Published) -> None:
    log = scene.directory / "log"
    scene.mount_image(published.plain, f"log.to={log}", fstype="erofs.fuse")
    kill(scene, NBDFUSE)
    until(lambda: "nbdfuse has gone" in log.read_text(), "a line in the log")
    says_that_it_is_dead(scene)
    done = scene.run("stat", scene.mnt)
    assert (done.status, "  dead      nbdfuse has gone" in done.out) == (32, True)
    by_pyerofs(scene)


@pytest.mark.usefixtures("nbdfuse")
def test_a_daemon_that_is_killed_before_its_record_leaves_nothing(
    scene: Scene, fake: FakeRegistry, images: Images
) -> None:
    """Stopped when it has just started nbdfuse, which waits for it, and killed there."""
    push_image(FakePusher(fake), "app", "1", [Layer(images.other)])
    shim = scene.directory / "bin/nbdfuse"
    shim.parent.mkdir()
    real = need("nbdfuse", "libnbd-bin")
    shim.write_text(f'#!/bin/bash\nkill -STOP $PPID; exec -a nbdfuse {real} "$@"\n')
    shim.chmod(0o755)
    os.environ["PATH"] = f"{shim.parent}:{os.environ['PATH']}"
    try:
        mount = scene.start(
            "mount", "-t", "erofs.fuse", "-o", f"oci.cache={scene.cache}", f"{fake.host}/app:1", scene.mnt
        )
    finally:
        os.environ["PATH"] = os.environ["PATH"].partition(":")[2]
    until(lambda: any(text.startswith(NBDFUSE) for text in scene.processes().values()), "nbdfuse")
    os.kill(pid_of(scene, "pyerofs.worker"), signal.SIGKILL)
    _, errors = mount.communicate(timeout=60)
    assert mount.returncode == 2 and errors.count("\n") == 1
    assert scene.leftovers() == []


# Mount namespaces


@pytest.mark.usefixtures("nbdfuse")
def test_a_mount_ends_with_the_last_process_of_its_namespace(scene: Scene, published: Published) -> None:
    """It must end by itself: nobody can reach it any more."""
    mount = scene.argv("mount", "-t", "erofs.fuse", "-o", f"oci.cache={scene.cache}", published.plain, scene.mnt)
    script = f'"$@" && cat {scene.mnt}/hello && read -r _'
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", *mount],
        env=scene.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as shell:  # fmt: skip
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"hello, world\n"
        assert not scene.mnt.is_mount()
        assert pid_of(scene, "pyerofs.worker")
    scene.nothing_left()
