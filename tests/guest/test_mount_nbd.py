"""The main job, in a real kernel with NBD: command line, registry, the whole tree, and nothing left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyerofs.kernel import mountpoint
from tests.support.fakeregistry import FakeRegistry, short, stall
from tests.support.images import FakePusher, Images, Layer, Published, push_image
from tests.support.kernellog import KernelLog
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, by_mount_u, by_pyerofs, until
from tests.support.trees import Tree, assert_same, make_image

MOUNT2 = "165 "  # x86-64's number of mount(2), as in /proc/PID/task/TID/syscall


@pytest.fixture(autouse=True)
def quiet_kernel(scene: Scene) -> Iterator[KernelLog]:
    """Nothing is left, and the kernel had nothing to complain of; a test that provokes it reads warnings() itself."""
    log = KernelLog()
    yield log
    scene.nothing_left()
    assert log.warnings() == []
    log.close()


def by_umount(scene: Scene) -> None:
    subprocess.run(["umount", scene.mnt], check=True)
    scene.nothing_left()


def device_of(scene: Scene) -> Path:
    found = mountpoint.find(str(scene.mnt))
    assert found is not None and found.fstype == "erofs"
    return Path("/sys/dev/block", found.device).resolve()


def daemon_of(scene: Scene) -> int:
    return next(pid for pid, text in scene.processes().items() if "pyerofs.daemon.worker" in text)


# What works


@pytest.mark.qemu
@pytest.mark.parametrize(("name", "unmount"), [("plain", by_umount), ("lz4", by_pyerofs), ("of_platforms", by_mount_u)])
def test_the_main_job(
    scene: Scene, tree: Tree, images: Images, published: Published, name: str, unmount: Callable[[Scene], None]
) -> None:
    """The very command line of the issue, with the default cache."""
    reference = getattr(published, name)
    done = scene.run("mount", "-t", "erofs.nbd", "-o", "oci=0,oci.platform=linux/amd64", reference, scene.mnt)
    assert done == Done(0, "", "")
    device = device_of(scene)
    size = (images.lz4 if name == "lz4" else images.plain).stat().st_size
    assert (device / "size").read_text() == f"{size // 512}\n"
    assert (device / "ro").read_text() == "1\n"
    assert (device / "backend").read_text().startswith("pyerofs-")  # so it was netlink
    assert_same(tree.entries, scene.mnt)
    unmount(scene)


@pytest.mark.qemu
def test_by_ioctl(scene: Scene, tree: Tree, published: Published) -> None:
    scene.mount_image(published.plain, "nbd.attach=ioctl", fstype="erofs.nbd")
    assert not (device_of(scene) / "backend").exists()
    assert_same(tree.entries, scene.mnt)
    by_umount(scene)


def test_stat_by_target_and_by_device(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    (scene.mnt / "hello").read_bytes()
    device = f"/dev/{device_of(scene).name}"
    for name in (scene.mnt, device):
        done = scene.run("stat", "--json", name)
        assert (done.status, done.err) == (0, "")
        found = json.loads(done.out)
        assert (found["device"], found["target"], found["pid"]) == (device, str(scene.mnt), daemon_of(scene))
        assert found["reads"]["latency"]["count"] > 0
    by_umount(scene)


def test_stat_tells_of_a_new_daemon(scene: Scene, published: Published, quiet_kernel: KernelLog) -> None:
    log = scene.directory / "log"
    scene.mount_image(published.plain, f"log.to={log}", fstype="erofs.nbd")
    before = daemon_of(scene)
    os.kill(before, 9)

    def answers() -> bool:
        done = scene.run("stat", "--json", scene.mnt)
        return done.status == 0 and bool(json.loads(done.out)["restarts"])

    until(answers, "an answer of the new daemon", 60)
    found = json.loads(scene.run("stat", "--json", scene.mnt).out)
    assert (found["restarts"], found["pid"]) == (1, daemon_of(scene))
    assert found["pid"] != before
    assert found["supervisor_pid"] in scene.processes()
    assert {json.loads(line)["target"] for line in log.read_text().splitlines()} == {str(scene.mnt)}  # the supervisor's
    by_umount(scene)
    assert all("Receive control failed" in line for line in quiet_kernel.warnings())  # the old daemon's socket


@pytest.mark.qemu
def test_four_connections(scene: Scene, tree: Tree, published: Published) -> None:
    """The kernel must not take a socket for dead that waits for the registry: only oci.timeout ends a read."""
    scene.mount_image(published.plain, "oci.connections=4", "oci.timeout=77", fstype="erofs.nbd")
    assert (device_of(scene) / "queue" / "io_timeout").read_text() == "87000\n"
    assert_same(tree.entries, scene.mnt)
    by_umount(scene)


@pytest.mark.qemu
def test_a_mount_is_lazy_and_the_next_one_asks_for_nothing(
    scene: Scene, published: Published, registry: LoggingRegistry, tree: Tree
) -> None:
    done = scene.mount_image(published.plain)
    assert "driver nbd: " in done.error
    assert (scene.mnt / "hello").read_bytes() == b"hello, world\n"
    row = next(row for row in json.loads(scene.run("list", "--json").out) if row["target"] == str(scene.mnt))
    assert (row["source"], row["driver"], row["pid"]) == (published.plain, "nbd", daemon_of(scene))
    assert_same(tree.entries, scene.mnt)
    by_pyerofs(scene)
    before = len(registry.requests())
    assert before > 0
    scene.mount_image(published.plain)
    assert_same(tree.entries, scene.mnt)
    by_pyerofs(scene)
    assert len(registry.requests()) == before


@pytest.mark.qemu
def test_a_local_file(scene: Scene, tree: Tree, images: Images) -> None:
    scene.mount(images.lz4, fstype="erofs.nbd")
    assert_same(tree.entries, scene.mnt)
    by_umount(scene)


@pytest.mark.qemu
@pytest.mark.parametrize("option", ["ro", "loop"])
def test_erofs_local(scene: Scene, tree: Tree, images: Images, option: str) -> None:
    scene.mount(images.plain, option, fstype="erofs.local")
    assert_same(tree.entries, scene.mnt)
    by_pyerofs(scene)


def test_two_mounts_at_once_and_a_block_device_as_source(scene: Scene, published: Published, tree: Tree) -> None:
    second, third = scene.directory / "second", scene.directory / "third"
    for target in (second, third):
        target.mkdir()
    scene.mount_image(published.plain, fstype="erofs.nbd")
    scene.mount_image(published.plain, fstype="erofs.nbd", target=second)
    device = Path("/dev") / device_of(scene).name
    scene.mount(device, fstype="erofs.nbd", target=third)
    for target in (scene.mnt, second, third):
        assert (target / "hello").read_bytes() == b"hello, world\n"
    subprocess.run(["umount", third, scene.mnt, second], check=True)
    scene.nothing_left()


def test_busy_and_lazy_unmounts(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    with (scene.mnt / "text").open("rb") as file:
        done = scene.run("umount", scene.mnt)
        assert done.status == 32
        assert "busy" in done.error
        assert scene.run("umount", "--lazy", scene.mnt) == Done(0, "", "")
        assert not scene.mnt.is_mount()
        assert file.read(6) == b"line 0"  # its user lives on
        assert os.path.exists(f"/proc/{daemon_of(scene)}")


def test_sigterm_to_the_daemon_unmounts_when_nobody_uses_it(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.nbd")
    daemon = daemon_of(scene)
    with (scene.mnt / "text").open("rb") as file:
        os.kill(daemon, 15)
        assert file.read(6) == b"line 0"
        assert scene.mnt.is_mount()
    with contextlib.suppress(ProcessLookupError):  # the first signal may have been looked at only now
        os.kill(daemon, 15)
    scene.nothing_left()
    assert not scene.mnt.is_mount()


# What does not


@pytest.mark.parametrize(("image", "options", "status", "text"), [
    ("notag", "ro", 32, "notag"),
    ("liar", "ro", 32, "EROFS"),
    ("cut", "ro", 32, "bytes"),
    ("plain", "no_such_option", 32, "refused"),
    ("plain", "oci.nonsense", 1, "oci.nonsense"),
])  # fmt: skip
def test_errors(
    scene: Scene,
    published: Published,
    registry: LoggingRegistry,
    quiet_kernel: KernelLog,
    image: str,
    options: str,
    status: int,
    text: str,
) -> None:
    reference = getattr(published, image, f"{registry.host}/app:notag")
    options = f"oci.cache={scene.cache},{options}"
    done = scene.run("mount", "-t", "erofs.nbd", "-o", options, reference, scene.mnt)
    assert (done.status, done.out) == (status, ""), done.err
    assert text in done.error
    assert scene.leftovers() == []
    if options.endswith("no_such_option"):
        lines: list[str] = []

        def said() -> list[str]:
            lines.extend(quiet_kernel.warnings())
            return lines

        until(said, "what the kernel has to say")
        assert all("no_such_option" in line for line in lines)


def test_a_device_in_use_is_refused(
    scene: Scene, published: Published, images: Images, quiet_kernel: KernelLog
) -> None:
    scene.mount_image(published.plain, "nbd.device=/dev/nbd3", fstype="erofs.nbd")
    done = scene.run("mount", "--over", "-t", "erofs.nbd", "-o", "nbd.device=/dev/nbd3", images.other, scene.mnt)
    assert done.status == 32
    assert "/dev/nbd3 is in use" in done.error
    assert all("already in use" in line for line in quiet_kernel.warnings())
    assert (scene.mnt / "hello").read_bytes() == b"hello, world\n"
    by_umount(scene)


def test_a_mount_that_is_killed_while_it_resolves_leaves_nothing(
    scene: Scene, fake: FakeRegistry, images: Images
) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.other)])
    release, reached = threading.Event(), threading.Event()
    fake.default = stall(release, reached=reached)
    with killed(scene, fake, release):
        assert reached.wait(60)


@pytest.mark.qemu
def test_a_mount_that_is_killed_in_mount2_leaves_nothing(
    scene: Scene, fake: FakeRegistry, quiet_kernel: KernelLog
) -> None:
    """The kernel waits for the root's inode, which the registry does not give. It ends the process when that read has
    ended: at its timeout."""
    push_image(FakePusher(fake), "app", "1", [Layer(with_far_root(scene))])
    release, reached = threading.Event(), threading.Event()
    fake.default = stall(release, reached=reached)
    fake.script(short(4096))
    with killed(scene, fake, release, "oci.timeout=3") as mount:
        assert reached.wait(60)
        until(lambda: any(call.startswith(MOUNT2) for call in syscalls(mount.pid)), "that it is in mount(2)")
    quiet_kernel.warnings()  # the read that was given up is an I/O error in the log


def syscalls(pid: int) -> list[str]:
    """What each thread is in."""
    return [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/syscall")]


@contextlib.contextmanager
def killed(
    scene: Scene, fake: FakeRegistry, release: threading.Event, options: str = "ro"
) -> Iterator[subprocess.Popen[str]]:
    """A mount that is killed at the end of the with statement; then nothing must be left, with nothing released."""
    options += f",oci.cache={scene.cache}"
    mount = scene.start("mount", "-t", "erofs.nbd", "-o", options, f"{fake.host}/app:1", scene.mnt)
    try:
        yield mount
        mount.kill()
        mount.wait()
        scene.nothing_left()
    finally:
        release.set()
        mount.kill()
        mount.communicate()


def with_far_root(scene: Scene) -> bytes:
    """An image whose root's inode is not in the first 4 KiB: another of its directories is made the root."""
    tree = scene.directory / "tree"
    for number in range(200):
        (tree / f"directory {number}").mkdir(parents=True)
    image = make_image(tree, scene.directory / "image")
    scene.mount(image, fstype="erofs.local")
    nid = max(path.stat().st_ino for path in scene.mnt.iterdir())
    by_umount(scene)
    assert 2 * 4096 // 32 <= nid < 1 << 16
    data = bytearray(image.read_bytes())
    data[1024 + 8] &= ~1  # no checksum of the superblock
    data[1024 + 14 : 1024 + 16] = nid.to_bytes(2, "little")
    return bytes(data)
