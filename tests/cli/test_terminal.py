"""Standard output and error that are closed, full or without a reader; a process without memory; a bug."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from pyerofs.cli import config, main, read, terminal
from pyerofs.cli.table import table
from tests.support.images import Images, Published
from tests.support.scene import Scene

SHELL = ("sh", "-c")


def closed(which: str) -> tuple[str, ...]:
    return (*SHELL, f'exec "$@" {which}', "sh")


@pytest.mark.parametrize("which", [">&-", "<&- >&-"])
def test_output_that_is_closed(scene: Scene, images: Images, which: str) -> None:
    for arguments in (["read", images.other], ["config"], ["list", "--json"], ["cache", "ls", "--dir", "cache"]):
        done = scene.run(*arguments, prefix=closed(which))
        assert (done.status, done.error) == (2, "output: Bad file descriptor"), arguments


@pytest.mark.parametrize("which", ["2>&-", "<&- 2>&-", "2>/dev/full"])
def test_errors_that_nobody_sees(scene: Scene, images: Images, which: str) -> None:
    """What is asked for comes all the same, and nothing else with it."""
    done = scene.run("read", "-vv", images.other, prefix=(*SHELL, f'exec "$@" {which} | wc -c', "sh"))
    assert (done.status, int(done.out), done.err) == (0, images.other.stat().st_size, "")
    done = scene.run("read", "nothing", prefix=closed(which))
    assert (done.status, done.out, done.err) == (32, "", "")


@pytest.mark.parametrize("which", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_mount_without_any_of_them(scene: Scene, published: Published, which: str) -> None:
    """Its connections and its daemon's are nobody's output."""
    done = scene.run("mount", "-v", "-o", f"oci.cache={scene.cache}", published.plain, scene.mnt, prefix=closed(which))
    assert (done.status, done.out, done.err) == (0, "", "")
    assert any(scene.mnt.iterdir())
    assert scene.run("umount", scene.mnt, prefix=closed(which)).status == 0


@pytest.mark.parametrize("arguments", [["config"], ["config", "--example"], ["list", "--json"], ["metrics"]])
def test_a_full_disk(scene: Scene, arguments: list[str]) -> None:
    done = scene.run(*arguments, prefix=closed(">/dev/full"))
    assert (done.status, done.error) == (2, "output: No space left on device")


def test_a_full_disk_does_not_hide_a_failure(scene: Scene) -> None:
    done = scene.run("stat", "nothing", prefix=closed(">/dev/full"))
    assert done.status == 1
    assert "nothing" in done.error


def test_no_reader(scene: Scene) -> None:
    done = scene.run("config", prefix=(*SHELL, '{ sleep 0; "$@"; echo $? >status; } | true', "sh"))
    assert (done.out, done.err) == ("", "")
    assert (scene.directory / "status").read_text() in ("1\n", "0\n")  # "0": true was slower


def test_an_encoding_that_has_not_the_characters(scene: Scene) -> None:
    env = {"PYTHONIOENCODING": "ascii"}
    done = scene.run("inspect", "bücher\udcff", env=env)
    assert done.status == 1
    assert "b\\xfccher" in done.error


def test_input_that_is_closed(scene: Scene) -> None:
    done = scene.run("inspect", "docker-archive:-", prefix=closed("<&-"))
    assert done.status != 0
    assert "internal error" not in done.error


def test_what_is_closed_is_opened_before_anything_else(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pyerofs.cli import terminal; terminal.open_standard_files(); "
        "fd = os.open('/dev/null', os.O_RDONLY); os.write(3, str((fd, sys.stdout is None)).encode())"
    )
    script = f'exec "$@" 3>{tmp_path}/out <&- >&- 2>&-'
    subprocess.run([*SHELL, script, "sh", sys.executable, "-c", code], check=True)
    assert (tmp_path / "out").read_text() == "(4, False)"


# Without memory, without threads, and with a bug


@pytest.mark.parametrize("kibibytes", [30_000, 45_000, 60_000, 80_000, 100_000, 130_000, 200_000, 400_000])
def test_little_memory(scene: Scene, published: Published, kibibytes: int) -> None:
    """Below some limit the interpreter itself does not start; above it there is one line, or what was asked for."""
    limited = (*SHELL, f'ulimit -v {kibibytes}; exec "$@"', "sh")
    if subprocess.run([*limited, sys.executable, "-c", "import argparse, json"], capture_output=True).returncode:
        return
    options = ["-o", f"oci.cache={scene.cache}", published.plain]
    for arguments in (["read", "--length", "5", *options], ["inspect", *options], ["config"]):
        done = scene.run(*arguments, prefix=limited)
        assert "Traceback" not in done.err, done.err
        assert done.status in (0, 2, 32), done.err
        assert done.err.count("\n") == (done.status != 0), done.err


@pytest.mark.parametrize(
    ("error", "words", "status"),
    [
        (MemoryError(), "out of memory: this process may use less than it needs (ulimit -v", 2),
        (RuntimeError("can't start new thread"), "cannot start a thread: this process may", 2),
        (ImportError("libx.so: cannot map"), "cannot load a part of this program: libx.so", 2),
        (ZeroDivisionError("7 by 0"), "internal error at test_terminal.py:", 4),
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device", 2),
    ],
)
def test_errors_that_nobody_expected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, status: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(read, "_list", fail)
    assert main.main(["list"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pyerofs: {words}")
    if status == 4:
        assert line.endswith("please report it")


def test_where_a_bug_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "config", lambda *_: 1 // 0)
    assert main.main(["config", "-v"]) == 4
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("pyerofs: ") for line in lines)
    assert any("test_terminal.py" in line and "line" in line for line in lines)


def test_write_clears_only_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write(f"{terminal.CLEAR}a{terminal.CLEAR}\nb")
    assert capsys.readouterr().out == f"{terminal.CLEAR}a\\x1b[H\\x1b[J\nb\n"


def test_a_line_is_lost_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(file, write_through=True))
        terminal.say("text")
        terminal.show("text")


ROWS = [["/mnt/app", "quay.io/org/app:1.0", "/dev/nbd0 +2"], ["/m", "x", "-"]]


def test_a_table_has_a_header_and_columns() -> None:
    assert table(["TARGET", "SOURCE", "DEVICE"], ROWS, None, ()).split("\n") == [
        "TARGET    SOURCE               DEVICE",
        "/mnt/app  quay.io/org/app:1.0  /dev/nbd0 +2",
        "/m        x                    -",
    ]


def test_a_table_is_cut_to_the_terminal_where_it_may_be() -> None:
    lines = table(["TARGET", "SOURCE", "DEVICE"], ROWS, 36, (1, 2)).split("\n")
    assert lines[1] == "/mnt/app  quay.io/org…  /dev/nbd0 +2"
    assert max(map(len, lines)) == 36
