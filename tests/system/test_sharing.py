"""Real processes over one cache: each byte is asked for once, whoever wants it, and a process that dies takes nothing
with it."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from pyerofs.core import GRANULE
from tests.support.blobs import Rig
from tests.support.fakeregistry import LIMIT, FakeRegistry, stall
from tests.support.images import FakePusher, Images, Layer, push_image
from tests.support.needs import need
from tests.support.scene import Scene, until

SIZE = (24 << 20) + 777


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


def start(scene: Scene, rig: Rig, reference: str, name: str) -> tuple[subprocess.Popen[str], Path]:
    """A `read` of the whole blob into a file."""
    path = scene.directory / name
    with path.open("wb") as out:
        return scene.start("read", "-o", f"oci=0,oci.cache={rig.cache}", reference, stdout=out.fileno()), path


def finish(process: subprocess.Popen[str], path: Path, data: bytes) -> None:
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert path.read_bytes() == data


def asked_once(ranges: list[tuple[int, int]], size: int) -> None:
    """The ranges are all of the blob, and none overlaps another one."""
    end = 0
    for first, last in sorted(ranges):
        assert first == end, f"{first} is asked for twice or {end} not at all: {sorted(ranges)}"
        end = last + 1
    assert end == size


@pytest.mark.parametrize("processes", [2, 8])
def test_every_byte_is_asked_for_once(scene: Scene, rig: Rig, processes: int) -> None:
    reference, data = rig.publish(SIZE)
    started = [start(scene, rig, reference, f"out-{n}") for n in range(processes)]
    for process, path in started:
        finish(process, path, data)
    asked_once(rig.ranges, SIZE)


def test_two_servers_and_two_clients(scene: Scene, fake: FakeRegistry, images: Images) -> None:
    rig = Rig(fake, scene.directory)
    image = images.plain.read_bytes()
    push_image(FakePusher(fake), "app", "1", [Layer(image)])
    servers, copies = [], []
    for n in range(2):
        socket = scene.directory / f"socket-{n}"
        options = f"oci=0,oci.cache={rig.cache}"
        server = scene.start("serve", "--unix", socket, "-o", options, f"{fake.host}/app:1")
        assert server.stdout and server.stdout.readline().startswith("ready: ")
        servers.append(server)
    for n in range(2):
        command = [need("nbdcopy", "libnbd-bin"), f"nbd+unix:///?socket={scene.directory}/socket-{n}"]
        copies.append(subprocess.Popen([*command, scene.directory / f"copy-{n}"]))
    for n, copy in enumerate(copies):
        assert copy.wait(120) == 0
        assert (scene.directory / f"copy-{n}").read_bytes() == image
    for server in servers:
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=30)
        assert (server.returncode, errors) == (0, "")
    asked_once(rig.ranges, len(image))


@pytest.mark.parametrize("brought", [0, 70_000])
def test_a_process_that_is_killed_in_the_middle_of_a_run(scene: Scene, rig: Rig, brought: int) -> None:
    """The others fetch what it was fetching, and nothing else twice."""
    reference, data = rig.publish(SIZE)
    release, reached = threading.Event(), threading.Event()
    rig.fake.script(stall(release, after=brought, reached=reached))
    dying, _ = start(scene, rig, reference, "dying")
    assert reached.wait(LIMIT)
    others = [start(scene, rig, reference, f"out-{n}") for n in range(2)]
    until(lambda: len(rig.fake.requests("/manifests/")) == 3, "that the others want it too")
    dying.kill()
    dying.communicate()
    for process, path in others:
        finish(process, path, data)
    release.set()
    _, *ranges = rig.ranges
    start_again = min(first for first, _ in ranges)
    assert start_again % GRANULE == 0 and start_again <= brought
    asked_once([(0, start_again - 1), *ranges] if start_again else ranges, SIZE)
