"""What the image commands show while they work, and what they leave when they are ended."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from pyerofs.images.progress import Console, Lines
from tests.support.fakeregistry import FakeRegistry, stall
from tests.support.images import FakePusher, Layer, push_image
from tests.support.scene import Scene
from tests.support.skopeo import tags


def test_lines() -> None:
    said: list[str] = []
    clock = 0.0
    lines = Lines(Console(lambda text: said.append(f"+{text}"), said.append), lambda: clock)
    lines.update("blob a", 0, 1000)
    lines.update("blob a", 10, 1000)
    clock = 1.0
    lines.update("blob a", 512, 1000)
    lines.done("blob a", 3 << 20, "pulled")
    lines.update("blob b", 0, 0)
    assert said == [
        "blob a  0 B of 1000 B  0 %",
        "blob a  512 B of 1000 B  51 %",
        "",
        "+blob a  3.0 MiB  pulled",
        "blob b  0 B of 0 B  0 %",
    ]


def test_nobody_watches() -> None:
    said: list[str] = []
    lines = Lines(Console(said.append, None))
    lines.update("blob a", 1, 2)
    lines.done("blob a", 2 << 40, "pulled")
    assert said == ["blob a  2.0 TiB  pulled"]


@pytest.fixture
def image(fake: FakeRegistry) -> str:
    push_image(FakePusher(fake), "app", "1", [Layer(bytes(5_000_000))])
    return f"{fake.host}/app:1"


@pytest.mark.parametrize("quiet", [False, True])
def test_on_a_terminal(scene: Scene, image: str, quiet: bool) -> None:
    ours, theirs = pty.openpty()
    options = ["-q"] if quiet else []
    command = scene.argv("pull", *options, image, f"oci:{scene.directory}/out:app")
    done = subprocess.Popen(command, env=scene.environment, stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    os.close(ours)
    out, _ = done.communicate(timeout=60)
    assert (done.returncode, len(out.splitlines())) == (0, 1)
    if quiet:
        assert shown == b""
        return
    text = shown.decode()
    assert " of 4.8 MiB  " in text
    assert "\r\x1b[Kpyerofs: blob sha256:" in text
    assert text.endswith("pulled\r\n")


def test_ended_in_the_middle(scene: Scene, image: str, fake: FakeRegistry) -> None:
    release, reached = threading.Event(), threading.Event()
    fake.script(lambda exchange: exchange.reply(200, exchange.blob), stall(release, 1000, reached))
    out = scene.directory / "out"
    process = scene.start("pull", image, f"oci:{out}:app")
    assert reached.wait(60)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    release.set()
    assert process.returncode == 8
    assert "Traceback" not in said
    assert tags(out) == {}
    assert {path.name for path in Path(out).iterdir()} == {"blobs", "index.json", "oci-layout"}
