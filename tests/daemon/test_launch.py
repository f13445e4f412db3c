"""The daemon that comes up while a mount command imports: started only for what looks like the mount of an image, and
gone when it was for nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pyerofs.daemon import launch
from tests.support.scene import until


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    yield
    launch.drop_spare()


def arguments_of(pid: int) -> list[str]:
    """They are empty for a moment after the spawning."""
    until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() != b"", "arguments")
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")


@pytest.mark.parametrize(
    "words",
    [
        ("{source}", "{target}"),
        ("-t", "erofs.nbd", "{source}", "{target}", "-o", "oci=0"),
        ("-v", "{source}", "{target}"),
    ],
)
def test_the_mount_of_an_image_finds_its_daemon_started(tmp_path: Path, words: Sequence[str]) -> None:
    launch.start_early(["mount", *(w.format(source="localhost/x:1", target=tmp_path) for w in words)])
    early = launch._spare
    assert early is not None
    assert arguments_of(early.pid)[-1] == str(tmp_path)
    assert launch.start(str(tmp_path)) is early
    early.kill()
    another = launch.start(str(tmp_path))
    assert another is not early
    another.kill()


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "localhost/x:1", "{target}"),
        ("mount", "localhost/x:1"),
        ("mount", "{file}", "{target}"),
        ("mount", "-u", "{target}"),
        ("mount", "localhost/x:1", "{target}/missing"),
        ("mount", "localhost/x:1", "oci.password=secret"),
        ("mount", "-o", "{target}", "localhost/x:1"),
    ],
)
def test_nothing_is_started_for_anything_else(tmp_path: Path, words: Sequence[str]) -> None:
    file = tmp_path / "image.erofs"
    file.touch()
    launch.start_early([word.format(target=tmp_path, file=file) for word in words])
    assert launch._spare is None


def test_another_target_gets_a_daemon_of_its_own(tmp_path: Path) -> None:
    launch.start_early(["mount", "localhost/x:1", str(tmp_path)])
    other = launch.start("/")
    assert arguments_of(other.pid)[-1] == "/"
    other.kill()


def test_a_spare_that_nobody_wanted_is_ended(tmp_path: Path) -> None:
    launch.start_early(["mount", "localhost/x:1", str(tmp_path)])
    assert launch._spare is not None
    pid = launch._spare.pid
    launch.drop_spare()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
