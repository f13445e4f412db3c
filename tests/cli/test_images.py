"""What the image commands show while they work, and what they leave when they are ended."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from pyerofs.images.progress import Console, Lines, Style
from tests.support.fakeregistry import FakeRegistry, honest, stall
from tests.support.images import FakePusher, Layer, push_image
from tests.support.scene import Scene
from tests.support.skopeo import tags


class Screen:
    """What a Lines shows, by a clock of its own: with a + what stays, without what the next one replaces."""

    def __init__(self, style: Style, *, terminal: bool, sparing: bool = False) -> None:
        self.said: list[str] = []
        self.now = 0.0
        show = self.said.append if terminal else None
        console = Console(lambda text: self.said.append(f"+{text}"), show, style, sparing)
        self.lines = Lines(console, lambda: self.now)


def test_bars_of_all_that_is_under_way_with_rate_and_time_left() -> None:
    screen = Screen("bar", terminal=True)
    screen.lines.update("blob a", 0, 10 << 20)
    screen.lines.update("blob b", 0, 10 << 20)  # too soon to be shown
    screen.now = 2.0
    screen.lines.update("blob a", 4 << 20, 10 << 20)
    screen.lines.done("blob a", 10 << 20, "pulled")
    screen.lines.update("blob b", 0, 10 << 20)
    assert screen.said == [
        "blob a                           [                    ] 0 B of 10.0 MiB\n0 B/s",
        "blob a                           [########            ] 4.0 MiB of 10.0 MiB\n"
        "blob b                           [                    ] 0 B of 10.0 MiB\n"
        "2.0 MiB/s, 8 s left",
        "",
        "+blob a  10.0 MiB  pulled",
        "blob b                           [                    ] 0 B of 10.0 MiB\n2.0 MiB/s, 5 s left",
    ]


def test_in_a_pipe_a_line_every_ten_seconds() -> None:
    screen = Screen("plain", terminal=False)
    for second in range(0, 25, 5):
        screen.now = float(second)
        screen.lines.update("layer 1 of 2: write", second << 20, 100 << 20)
    screen.lines.done("layer 1 of 2  sha256:x", 100 << 20, "written")
    assert screen.said == [
        "+layer 1 of 2: write  10.0 MiB of 100.0 MiB  10 %; 1.0 MiB/s, 1 min 30 s left",
        "+layer 1 of 2: write  20.0 MiB of 100.0 MiB  20 %; 1.0 MiB/s, 1 min 20 s left",
        "+layer 1 of 2  sha256:x  100.0 MiB  written",
    ]


def test_a_sparing_one_says_in_a_pipe_only_what_takes_long() -> None:
    screen = Screen("plain", terminal=False, sparing=True)
    screen.lines.update("read", 1, 2)
    screen.lines.done("layer 1 of 1", 2, "converted")
    assert screen.said == []


def test_none_says_nothing() -> None:
    screen = Screen("none", terminal=True)
    screen.now = 100.0
    screen.lines.update("blob a", 1, 2)
    screen.lines.done("blob a", 2 << 40, "pulled")
    assert screen.said == []


def test_json_lines() -> None:
    screen = Screen("json", terminal=False)
    screen.now = 1.0
    screen.lines.update("blob a", 1 << 20, 3 << 20)
    screen.lines.done("blob a", 3 << 20, "pulled")
    assert [json.loads(line[1:]) for line in screen.said] == [
        {
            "event": "progress",
            "under_way": [{"what": "blob a", "done": 1 << 20, "total": 3 << 20}],
            "rate": 1 << 20,
            "left": 2.0,
        },
        {"event": "done", "what": "blob a", "bytes": 3 << 20, "how": "pulled"},
    ]


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
    assert " of 4.8 MiB" in text
    assert "\x1b[Jpyerofs: blob sha256:" in text
    assert text.endswith("pulled\r\n")


def test_ended_in_the_middle(scene: Scene, image: str, fake: FakeRegistry) -> None:
    release, reached = threading.Event(), threading.Event()
    stalled = stall(release, 1000, reached)
    fake.default = lambda exchange: (stalled if len(exchange.blob) > 1_000_000 else honest)(exchange)
    out = scene.directory / "out"
    process = scene.start("pull", image, f"oci:{out}:app")
    assert reached.wait(60)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    release.set()
    assert process.returncode == 8
    assert "Traceback" not in said
    assert tags(out) == {}
    assert {path.name for path in Path(out).iterdir()} == {"blobs", "index.json", "oci-layout", ".pyerofs-partial"}
