"""Between the process that mounts and its daemon: whichever of the two goes at whatever moment, nothing is left."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyerofs.config.options import names_image, parse_mount_options
from pyerofs.errors import MountError, UsageError
from pyerofs.kernel import mountpoint, nbd
from pyerofs.mounting import mount as mounting
from pyerofs.oci.location import Location
from tests.support.fakeregistry import FakeRegistry, stall
from tests.support.images import FakePusher, Images, Layer, Published, push_image
from tests.support.needs import need, need_root
from tests.support.scene import Scene, until


@pytest.fixture(autouse=True)
def needs() -> None:
    need_root()
    need("nbdfuse", "libnbd-bin")


class Caller:
    """Plays the process that mounts; see pyerofs/daemon/worker.py for what the two say."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(30)
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "pyerofs.daemon.worker", str(theirs.fileno()), str(scene.mnt)],
            pass_fds=[theirs.fileno()],
            env=scene.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        theirs.close()
        self.file = self.socket.makefile("r")

    def ask(self, source: str, *options: str) -> None:
        self.send(
            source=source,
            fstype="erofs.fuse",
            options=list(options),
            driver="fuse",
            target=str(self.scene.mnt),
            verbosity=0,
            directory="/",
            environment=self.scene.environment,
        )

    def send(self, **message: object) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Any:
        return json.loads(self.file.readline())

    def hang_up(self) -> None:
        self.file.close()
        self.socket.close()

    def ended(self) -> tuple[int, bytes]:
        said, _ = self.worker.communicate(timeout=30)
        return self.worker.returncode, said


@contextmanager
def calling(scene: Scene) -> Iterator[Caller]:
    caller = Caller(scene)
    try:
        yield caller
    finally:
        caller.hang_up()
        caller.worker.kill()
        caller.worker.communicate()
    scene.nothing_left()


def attached(caller: Caller, published: Published) -> str:
    """The path that is to be mounted."""
    caller.ask(published.plain, f"oci.cache={caller.scene.cache}")
    what = caller.receive()["mount"]
    path: str = what["layers"][0]["path"]
    assert what == {
        "source": published.plain,
        "directory": "",
        "layers": [{"path": path, "layer": 0, "devices": [], "names": True}],
    }
    return path


def test_a_caller_that_says_nothing(scene: Scene) -> None:
    with calling(scene) as caller:
        caller.hang_up()
        assert caller.ended() == (1, b"")


def test_a_caller_that_goes_before_its_mount(scene: Scene, published: Published) -> None:
    with calling(scene) as caller:
        attached(caller, published)
        caller.hang_up()
        assert caller.ended() == (0, b"")
        scene.nothing_left()


def test_a_caller_that_goes_right_after_its_mount(scene: Scene, published: Published) -> None:
    """Killed between mount(2) and its message: the mount is undone, since nobody would serve it."""
    with calling(scene) as caller:
        path = attached(caller, published)
        mountpoint.mount(path, str(scene.mnt), "erofs", mountpoint.MS_RDONLY)
        caller.hang_up()
        assert caller.ended() == (0, b"")
        scene.nothing_left()


def test_a_caller_that_goes_while_the_registry_is_silent(scene: Scene, fake: FakeRegistry, images: Images) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.other)])
    release, reached = threading.Event(), threading.Event()
    fake.default = stall(release, reached=reached)
    with calling(scene) as caller:
        caller.ask(f"{fake.host}/app:1", f"oci.cache={scene.cache}")
        assert reached.wait(20)
        caller.hang_up()
        caller.ended()
        scene.nothing_left()
    release.set()


def test_a_whole_life(scene: Scene, published: Published) -> None:
    with calling(scene) as caller:
        path = attached(caller, published)
        mountpoint.mount(path, str(scene.mnt), "erofs", mountpoint.MS_RDONLY)
        caller.send(mounted=True)
        assert caller.receive() == {"done": True}
        assert caller.file.readline() == ""  # it has let go of us
        assert (scene.mnt / "hello").read_bytes() == b"hello, world\n"
        mountpoint.umount(str(scene.mnt))
        assert caller.ended() == (0, b"")
        scene.nothing_left()


def test_a_daemon_is_detached_from_its_caller(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    daemon = next(pid for pid, text in scene.processes().items() if "pyerofs.daemon.worker" in text)
    assert os.getsid(daemon) == daemon
    assert os.readlink(f"/proc/{daemon}/cwd") == "/"
    assert {os.readlink(f"/proc/{daemon}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    assert scene.run("umount", scene.mnt).status == 0


def test_a_daemon_that_is_killed_before_the_mount(scene: Scene, fake: FakeRegistry, images: Images) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.other)])
    release, reached = threading.Event(), threading.Event()
    fake.default = stall(release, reached=reached)
    options = f"oci.cache={scene.cache}"
    mount = scene.start("mount", "-t", "erofs.fuse", "-o", options, f"{fake.host}/app:1", scene.mnt)
    assert reached.wait(30)
    os.kill(next(pid for pid, text in scene.processes().items() if "pyerofs.daemon.worker" in text), signal.SIGKILL)
    _, errors = mount.communicate(timeout=30)
    release.set()
    assert mount.returncode == 2
    assert errors.startswith("pyerofs: the daemon exited unexpectedly") and errors.count("\n") == 1
    scene.nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_caller_that_is_interrupted(scene: Scene, fake: FakeRegistry, images: Images, number: int) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(images.other)])
    release, reached = threading.Event(), threading.Event()
    fake.default = stall(release, reached=reached)
    options = f"oci.cache={scene.cache}"
    mount = scene.start("mount", "-t", "erofs.fuse", "-o", options, f"{fake.host}/app:1", scene.mnt)
    assert reached.wait(30)
    mount.send_signal(number)
    _, errors = mount.communicate(timeout=30)
    assert mount.returncode == (8 if number == signal.SIGINT else -number)
    assert "Traceback" not in errors
    scene.nothing_left()
    release.set()


def test_a_caller_with_threads_keeps_no_zombie(
    scene: Scene, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in scene.environment.items():
        monkeypatch.setenv(name, value)
    mounting.mount(published.plain, str(scene.mnt), f"oci=0,oci.cache={scene.cache}", fstype="erofs.fuse")
    daemon = next(pid for pid, text in scene.processes().items() if "pyerofs.daemon.worker" in text)
    pidfd = os.pidfd_open(daemon)
    mounting.unmount(str(scene.mnt))
    assert select.select([pidfd], [], [], 0)[0]
    os.close(pidfd)
    until(lambda: not os.path.exists(f"/proc/{daemon}"), "that it was waited for")


# Which driver


@pytest.mark.parametrize(("source", "options", "fstype", "module", "expected"), [
    ("host/app:1", "", "erofs", True, "nbd"),
    ("host/app:1", "", "erofs", False, "fuse"),
    ("host/app:1", "", "erofs.fuse", True, "fuse"),
    ("host/app:1", "", "erofs.nbd", False, "nbd"),
    ("/dev/null", "", "erofs", True, "local"),
    ("/dev/null", "", "erofs.nbd", True, "nbd"),
    ("/dev/null", "", "erofs.local", True, "local"),
    ("./missing", "", "erofs", True, "local"),
    ("null", "oci", "erofs", False, "fuse"),
])  # fmt: skip
def test_the_driver(
    monkeypatch: pytest.MonkeyPatch, source: str, options: str, fstype: str, module: bool, expected: str
) -> None:
    monkeypatch.setattr(nbd, "load_module", lambda: module)
    monkeypatch.chdir("/dev")
    parsed = parse_mount_options([options], fstype)
    driver, why = mounting.choose_driver(Location.parse(source, image=names_image([options])), parsed)
    assert driver == expected
    assert why


def test_an_image_is_not_local() -> None:
    with pytest.raises(UsageError, match="not a local file"):
        mounting.choose_driver(Location.parse("host/app:1"), parse_mount_options([], "erofs.local"))


# unmount()


def test_a_daemon_that_does_not_end(scene: Scene, published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    daemon = next(pid for pid, text in scene.processes().items() if "pyerofs.daemon.worker" in text)
    monkeypatch.setattr(mounting, "GONE_DEADLINE", 0.2)
    os.kill(daemon, signal.SIGSTOP)
    try:
        with pytest.raises(MountError, match="is unmounted, but its daemon still runs"):
            mounting.unmount(str(scene.mnt))
    finally:
        os.kill(daemon, signal.SIGCONT)
    scene.nothing_left()


def test_unmount_of_a_link_to_the_mount_point(scene: Scene, published: Published) -> None:
    scene.mount_image(published.plain, fstype="erofs.fuse")
    link = scene.directory / "link"
    link.symlink_to(scene.mnt)
    mounting.unmount(str(link))
    scene.nothing_left()
