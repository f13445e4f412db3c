"""Mounts by nbdfuse whose processes have been killed, or whose mount namespace has ended: said, and swept."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess

import pytest

from pyerofs.daemon.record import DIRECTORY, start_of
from pyerofs.kernel import mountpoint
from pyerofs.mounting.present import record_of
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import FakePusher, Images, Layer, Published, push_image
from tests.support.needs import need
from tests.support.scene import Scene, by_pyerofs, by_umount, until

pytestmark = pytest.mark.usefixtures("nbdfuse")

NBDFUSE = "nbdfuse --readonly"


def source_of(scene: Scene) -> str:
    """What it is mounted from."""
    found = mountpoint.find(str(scene.mnt))
    assert found is not None
    record = record_of(found)
    assert record is not None
    return record.device


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


def test_a_mount_whose_daemon_was_killed_is_dead_and_leaves_nothing(scene: Scene, published: Published) -> None:
    log = scene.directory / "log"
    scene.mount_image(published.plain, f"log.to={log}", fstype="erofs.fuse")
    kill(scene, "pyerofs.daemon.worker")
    says_that_it_is_dead(scene)
    done = scene.run("stat", scene.mnt)
    assert (done.status, published.plain in done.out) == (32, True)
    assert "  dead      its daemon has died" in done.out
    until(lambda: "has died, and nothing more can be read" in log.read_text(), "a line in the log")
    assert json.loads(log.read_text().splitlines()[-1])["level"] == "error"
    done = scene.run("reattach", "--all")
    assert done.status == 32 and f"{scene.mnt}: its daemon has died" in done.err
    by_pyerofs(scene)


def test_a_mount_whose_daemon_was_killed_leaves_nothing_to_umount_8(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    kill(scene, "pyerofs.daemon.worker")
    by_umount(scene)
    scene.nothing_left()


@pytest.mark.parametrize("record", [True, False])
def test_a_mount_whose_processes_were_all_killed_leaves_nothing(
    scene: Scene, published: Published, record: bool
) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    source = source_of(scene)
    kill(scene, "pyerofs.daemon.worker", "pyerofs.daemon.supervisor")
    if not record:
        os.unlink(f"{os.path.dirname(source)}.json")
    says_that_it_is_dead(scene)
    by_pyerofs(scene)


@pytest.mark.parametrize("gone", ["record", "mount", "nbdfuse", "directory"])
def test_what_has_outlived_its_mount_is_swept(scene: Scene, published: Published, gone: str) -> None:
    """By whatever is left of it."""
    scene.mount_image(published.plain, fstype="erofs.fuse")
    directory = os.path.dirname(source_of(scene))
    kill(scene, "pyerofs.daemon.worker", "pyerofs.daemon.supervisor")
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


def test_what_lives_is_not_swept(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    directory = os.path.dirname(source_of(scene))
    shutil.copy(f"{directory}.json", scene.directory)
    os.unlink(f"{directory}.json")
    assert scene.run("reattach", "--all").status == 0
    assert (scene.mnt / "hello").read_bytes() == b"hello, world\n"
    shutil.copy(scene.directory / f"{os.path.basename(directory)}.json", f"{directory}.json")
    by_pyerofs(scene)


def test_a_mount_whose_nbdfuse_was_killed_is_dead_and_leaves_nothing(scene: Scene, published: Published) -> None:
    log = scene.directory / "log"
    scene.mount_image(published.plain, f"log.to={log}", fstype="erofs.fuse")
    kill(scene, NBDFUSE)
    until(lambda: "nbdfuse has died" in log.read_text(), "a line in the log")
    says_that_it_is_dead(scene)
    done = scene.run("stat", scene.mnt)
    assert (done.status, "  dead      nbdfuse has died" in done.out) == (32, True)
    by_pyerofs(scene)


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
    os.kill(pid_of(scene, "pyerofs.daemon.worker"), signal.SIGKILL)
    _, errors = mount.communicate(timeout=60)
    assert mount.returncode == 2 and errors.count("\n") == 1
    assert scene.leftovers() == []


# Mount namespaces


def test_what_lives_in_a_container_is_not_swept_from_outside(scene: Scene, published: Published) -> None:
    """Its records are where nobody outside sees them, its processes are not."""
    mount = scene.argv("mount", "-t", "erofs.fuse", "-o", f"oci.cache={scene.cache}", published.plain, scene.mnt)
    umount = scene.argv("umount", scene.mnt)
    script = (
        f'mount -t proc proc /proc && mount -t tmpfs tmpfs {DIRECTORY} && "$@" && echo mounted && read -r _'
        f" && cat {scene.mnt}/hello && {shlex.join(umount)}"
    )
    with subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", *mount],
        env=scene.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as shell:  # fmt: skip
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"mounted\n"
        assert scene.run("reattach", "--all").status == 0
        assert shell.communicate(b"\n")[0] == b"hello, world\n"
    assert shell.returncode == 0


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
        worker = pid_of(scene, "pyerofs.daemon.worker")
    if not os.access("/proc/1/ns/mnt", os.R_OK):  # a sandbox hides process 1: then nothing is ended that may be in use
        assert pid_of(scene, "pyerofs.daemon.worker") == worker
        os.kill(worker, signal.SIGTERM)
    scene.nothing_left()
