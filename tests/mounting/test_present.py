"""A mount point that has a mount already: the same, another, a dead one; two at once; and what can change of it."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from pyerofs.daemon.record import Record, read_all, start_of
from pyerofs.kernel import mountpoint
from tests.support.fakeregistry import FakeRegistry, honest, stall
from tests.support.images import FakePusher, Images, Layer, Published, push_image
from tests.support.needs import need, need_root
from tests.support.scene import Done, Scene, by_pyerofs, until

FUSE = ("-t", "erofs.fuse")


@pytest.fixture(autouse=True)
def needs() -> None:
    need_root()
    need("nbdfuse", "libnbd-bin")


def mount(scene: Scene, source: str | Path, *arguments: str) -> Done:
    return scene.run("mount", "-o", f"oci.cache={scene.cache}", *arguments, source, scene.mnt)


def record_at(scene: Scene) -> Record:
    [record] = [record for record in read_all() if record.target == str(scene.mnt)]
    return record


def mounts_at(scene: Scene) -> int:
    return len([found for found in mountpoint.mountinfo() if found.target == str(scene.mnt)])


def test_the_same_is_mounted_once(scene: Scene, published: Published) -> None:
    assert mount(scene, published.plain, *FUSE) == Done(0, "", "")
    again = mount(scene, published.plain, *FUSE)
    assert (again.status, again.error) == (0, f"{published.plain} is already mounted on {scene.mnt}")
    assert mounts_at(scene) == 1
    by_pyerofs(scene)


def test_another_image_is_refused_unless_it_is_to_lie_over(scene: Scene, published: Published, images: Images) -> None:
    assert mount(scene, published.plain, *FUSE).status == 0
    sources: tuple[tuple[str | Path, tuple[str, ...]], ...] = (
        (published.lz4, FUSE),
        (published.plain, ("-o", "oci.platform=linux/arm64", *FUSE)),
    )
    for source, arguments in sources:
        done = mount(scene, source, *arguments)
        assert done.status == 32
        assert done.error == (
            f"{published.plain} is mounted on {scene.mnt}: `pyerofs umount {scene.mnt}` first, "
            "or --over mounts on top of it"
        )
    assert scene.run("mount", images.other, scene.mnt).status == 32
    assert scene.run("mount", "--over", images.other, scene.mnt).status == 0
    assert scene.run("mount", images.other, scene.mnt).error.endswith("is already mounted on " + str(scene.mnt))
    assert mounts_at(scene) == 2
    assert scene.run("umount", scene.mnt).status == 0
    by_pyerofs(scene)


def test_an_ordinary_filesystem_is_no_hindrance(scene: Scene, published: Published) -> None:
    mountpoint.mount("tmpfs", str(scene.mnt), "tmpfs", 0)
    assert mount(scene, published.plain, *FUSE) == Done(0, "", "")
    assert mounts_at(scene) == 2
    assert scene.run("umount", scene.mnt).status == 0
    mountpoint.umount(str(scene.mnt))
    scene.nothing_left()


def test_a_dead_mount_is_not_taken_for_one(scene: Scene, published: Published) -> None:
    assert mount(scene, published.plain, *FUSE).status == 0
    worker = record_at(scene).pid
    os.kill(worker, signal.SIGKILL)
    until(lambda: not start_of(worker), "its end")
    done = mount(scene, published.plain, *FUSE)
    assert done.status == 32 and "but its daemon has died" in done.error
    by_pyerofs(scene)


def test_two_at_once_mount_once(scene: Scene, fake: FakeRegistry, images: Images) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.other)])
    gate = threading.Event()
    fake.default = stall(gate)
    arguments = ("mount", *FUSE, "-o", f"oci.cache={scene.cache}", f"{fake.host}/app:1", scene.mnt)
    first = scene.start(*arguments)
    until(fake.requests, "the first one's request")
    second = scene.start(*arguments)
    assert second.stderr is not None
    assert second.stderr.readline() == f"pyerofs: another process is mounting at {scene.mnt}: waiting for it\n"
    fake.default = honest
    gate.set()
    assert first.wait(60) == second.wait(60) == 0
    assert mounts_at(scene) == 1
    by_pyerofs(scene)


# remount


def stat(scene: Scene) -> dict[str, object]:
    found = json.loads(scene.run("stat", "--json", scene.mnt).out)["cache"]
    assert isinstance(found, dict)
    return found


def test_filling_changes_while_it_is_mounted(scene: Scene, published: Published) -> None:
    assert mount(scene, published.plain, *FUSE).status == 0
    assert (stat(scene)["fill"], stat(scene)["complete"]) == ("none", False)
    assert scene.run("mount", "-o", "remount,oci.fill=full", scene.mnt) == Done(0, "", "")
    until(lambda: stat(scene)["complete"], "the filling")
    assert scene.run("mount", "-o", "remount,oci.fill=idle,oci.fill_rate=1M", scene.mnt) == Done(0, "", "")
    assert stat(scene)["fill"] == "idle"
    assert scene.run("mount", "-o", "remount,oci.fill=none", scene.mnt) == Done(0, "", "")
    assert stat(scene)["fill"] == "none"
    by_pyerofs(scene)


def test_flags_change_and_the_others_stay(scene: Scene, published: Published) -> None:
    assert mount(scene, published.plain, "-o", "nosuid", *FUSE).status == 0
    assert scene.run("mount", "-o", "remount,noexec", scene.mnt) == Done(0, "", "")
    found = mountpoint.find(str(scene.mnt))
    assert found is not None and {"ro", "nosuid", "noexec"} <= set(found.options.split(","))
    by_pyerofs(scene)


@pytest.mark.parametrize(("option", "said"), [
    ("oci.timeout=5", "oci.timeout cannot be changed while"),
    ("oci.platform=a/b", "oci.platform cannot be changed while"),
    ("oci.fil=idle", "unknown option 'oci.fil': did you mean oci.fill?"),
    ("acl", ""),  # it has that already
    ("dax", "dax cannot be changed while"),
])  # fmt: skip
def test_what_cannot_change_is_named(scene: Scene, published: Published, option: str, said: str) -> None:
    assert mount(scene, published.plain, *FUSE).status == 0
    done = scene.run("mount", "-o", f"remount,{option}", scene.mnt)
    assert (done.status, said in done.err) == (1 if said else 0, True)
    by_pyerofs(scene)


def test_a_remount_of_nothing(scene: Scene) -> None:
    done = scene.run("mount", "-o", "remount,oci.fill=idle", scene.mnt)
    assert done.status == 1 and "is not a mount of pyerofs" in done.error
