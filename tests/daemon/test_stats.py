"""Snapshots of a mount, and the look at them from outside: what they say, in which units, and that they never wait."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.cli import stat as stat_command
from pyerofs.core import GRANULE
from pyerofs.daemon import record
from pyerofs.daemon.record import LayerRecord, Record, start_of
from pyerofs.daemon.stats import identity, snapshot
from pyerofs.errors import MountError, UsageError
from pyerofs.export.file import BlobFile, open_blob
from pyerofs.mounting import stat as mount_stat
from pyerofs.mounting.reattach import find_record
from pyerofs.mounting.stat import health, query, query_all, rates, render, show_time
from tests.support.blobs import Rig
from tests.support.coredamage import elsewhere, overwrite
from tests.support.coreharness import until
from tests.support.fakeregistry import FakeRegistry, stall, status
from tests.support.statuses import daemon, record_of

SIZE = 300_000


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


@pytest.fixture
def blob(rig: Rig) -> Iterator[BlobFile]:
    with rig.open(rig.publish(SIZE)[0]) as blob:
        yield blob


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "run"))
    return tmp_path / "run"


def snap(blob: BlobFile) -> dict[str, Any]:
    """While nothing is going on; a read is answered before its run is at its end."""
    until(lambda: blob._export.store.stats().flights == 0)
    return snap_at_once(blob)


def snap_at_once(blob: BlobFile) -> dict[str, Any]:
    export = blob._export
    return snapshot([export], record_of(export), time.monotonic() - 10)


# What a snapshot says


def test_nothing_has_happened_yet(blob: BlobFile, rig: Rig) -> None:
    found = snap(blob)
    assert json.loads(json.dumps(found)) == found
    assert found["digest"].startswith("sha256:")
    assert (found["target"], found["device"], found["driver"], found["layer"]) == ("/mnt", "/dev/nbd0", "nbd", 0)
    assert (found["pid"], found["supervisor_pid"], found["restarts"]) == (os.getpid(), None, 0)
    assert 10 <= found["uptime_seconds"] < 60
    assert found["cache"] == {
        "directory": str(rig.place(found["digest"])),
        "size_bytes": SIZE,
        "present_bytes": 0,
        "present_percent": 0,
        "complete": False,
        "verification": "unverified",
        "fill": "none",
        "healed_granules": 0,
    }
    nothing = {"count": 0, "sum_seconds": 0, "max_seconds": 0, "buckets": []}
    assert found["reads"]["latency"] == nothing | {"p50_seconds": 0, "p90_seconds": 0, "p99_seconds": 0}
    assert found["last_error"] is None
    assert health(found) == "ok"


def test_of_a_cache_that_was_damaged(blob: BlobFile, rig: Rig) -> None:
    blob.pread(1000, 0)
    elsewhere(partial(overwrite, Path(snap(blob)["cache"]["directory"], "data"), 0, b"damage"))
    blob.pread(1000, 0)
    found = snap(blob)
    assert found["cache"]["healed_granules"] == 1
    assert (found["reads"]["uncached"], found["reads"]["shared"]) == (1, 0)  # what is fetched anew is handed over


def test_after_some_reads(blob: BlobFile, rig: Rig) -> None:
    rig.fake.script(status(503))
    blob.pread(1000, 0)
    blob.pread(1000, 0)
    found = snap(blob)
    assert found["cache"]["present_bytes"] == 131072
    assert found["cache"]["present_percent"] == pytest.approx(100 * 131072 / SIZE)
    assert (found["reads"]["hits"], found["reads"]["misses"], found["reads"]["served_bytes"]) == (1, 1, 2000)
    fetches = found["fetches"]
    assert (fetches["requests"], fetches["retries"], fetches["failures"], fetches["in_flight"]) == (2, 1, 1, 0)
    assert fetches["received_bytes"] == 131072
    assert fetches["latency"]["count"] == fetches["first_byte_latency"]["count"] == 1
    (bucket,) = fetches["latency"]["buckets"]
    assert bucket[1] == 1
    assert fetches["latency"]["max_seconds"] < bucket[0]
    assert fetches["latency"]["p50_seconds"] == fetches["latency"]["max_seconds"] == fetches["latency"]["sum_seconds"]
    assert "503" in found["last_error"]["text"]
    assert 0 <= found["last_error"]["age_seconds"] < 60
    assert health(found) == "ok"  # it has passed


def test_all_of_it(blob: BlobFile) -> None:
    blob.read()
    found = snap(blob)["cache"]
    assert (found["present_bytes"], found["present_percent"], found["complete"]) == (SIZE, 100, True)


def test_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    with open_blob(str(path)) as blob:
        found = snap(blob)
    assert (found["digest"], found["cache"]["directory"], found["cache"]["complete"]) == ("", "", True)
    assert "a local file" in render(found)


def test_a_registry_that_hangs_holds_up_nobody(blob: BlobFile, rig: Rig) -> None:
    release, reached = threading.Event(), threading.Event()
    rig.fake.script(stall(release, after=2 * GRANULE, reached=reached))
    reader = threading.Thread(target=lambda: blob.pread(100_000, 0))
    reader.start()
    assert reached.wait(20)
    until(lambda: snap_at_once(blob)["cache"]["present_bytes"] == 2 * GRANULE)
    found = snap_at_once(blob)
    assert (found["reads"]["waiting"], found["fetches"]["in_flight"], found["fetches"]["requests"]) == (1, 1, 1)
    assert found["fetches"]["latency"]["count"] == 0
    release.set()
    reader.join()


def test_a_close_waits_for_a_look_and_then_there_is_none(blob: BlobFile) -> None:
    export = blob._export
    with export.using():
        closing = threading.Thread(target=blob.close)
        closing.start()
        until(lambda: export._closing)
        assert closing.is_alive()
        assert export.store.stats().parked == 0
    closing.join()
    with pytest.raises(MountError, match="is being closed"):
        snap_at_once(blob)


# From outside


def test_a_daemon_is_asked(blob: BlobFile) -> None:
    blob.pread(1, 0)
    made = record_of(blob._export)
    with daemon(blob._export, made):
        assert find_record("/dev/nbd0") == find_record(made.id) == made
        found = query(made)
        assert found["reads"]["misses"] == 1
        assert "error" not in found


class Silent:
    """A process whose control socket takes questions and answers none."""

    def __init__(self, directory: Path):
        directory.mkdir(exist_ok=True)
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        pid = self.process.pid
        part = LayerRecord(f"pyerofs-{pid}-1", "/dev/nbd1", SIZE, "sha256:00", 0)
        self.record = Record(part.id, pid, start_of(pid), "/mnt", "app", "nbd", part.device, (part,))
        self.record.write()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.record.control)
        self.listener.listen()

    def close(self) -> None:
        self.listener.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def silent(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    monkeypatch.setattr(mount_stat, "PATIENCE", 0.05)
    silent = Silent(directory)
    yield silent
    silent.close()


def state_is(pid: int, letter: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == letter


def test_a_daemon_that_is_stopped(silent: Silent) -> None:
    os.kill(silent.process.pid, signal.SIGSTOP)
    until(lambda: state_is(silent.process.pid, "T"))
    found = query(silent.record)
    assert found == identity(silent.record) | {
        "error": f"the daemon does not answer within 0.05 s (pid {silent.process.pid} is stopped)"
    }
    assert health(found) == "no answer"
    assert f"daemon    {silent.process.pid}: no answer" in render(found)


def test_a_daemon_that_only_says_nothing(silent: Silent) -> None:
    assert query(silent.record)["error"].endswith(f"(pid {silent.process.pid} is there)")


def test_a_daemon_that_has_gone(silent: Silent) -> None:
    silent.process.kill()
    until(lambda: state_is(silent.process.pid, "Z"))
    silent.listener.close()
    assert query(silent.record)["error"] == (
        f"the daemon does not answer: Connection refused (pid {silent.process.pid} is gone)"
    )


def test_those_that_do_not_answer_are_waited_for_together(
    blob: BlobFile, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_stat, "PATIENCE", 1.0)
    made = record_of(blob._export)
    with daemon(blob._export, made):
        many = [silent.record if i % 2 else made for i in range(2)]
        many += [replace(silent.record, id=f"pyerofs-0-{i}") for i in range(20)]
        for each in many[2:]:
            os.symlink(silent.record.control, each.control)
        began = time.monotonic()
        found = query_all(many)
        assert time.monotonic() - began < 15  # one after another it would be 21
    assert [entry["id"] for entry in found] == [entry.id for entry in many]
    assert ["error" in entry for entry in found] == [False] + [True] * 21


def test_a_mount_that_waits_after_an_error(blob: BlobFile) -> None:
    found = snap(blob)
    found["reads"]["waiting"] = 3
    assert health(found) == "ok"
    found["last_error"] = {"text": "it broke", "age_seconds": 1}
    assert health(found) == "waiting"
    found["last_error"]["age_seconds"] = 100
    assert health(found) == "ok"


# For people


def test_it_is_shown_aligned(blob: BlobFile, rig: Rig) -> None:
    rig.fake.script(status(503))
    blob.pread(1000, 0)
    found = {**snap(blob), "restarts": 2, "supervisor_pid": 77}
    found["fetches"]["wire_bytes"] = 70_000
    text = render(found)
    for part in (
        "/mnt: ",
        "layer 0, sha256:",
        "  device    /dev/nbd0, by nbd",
        f"  daemon    {os.getpid()}, supervisor 77, up 10 seconds, 2 restarts",
        "  present   128.0 KiB of 293.0 KiB, 43.7 %, unverified",
        f"  cache     {rig.cache}/sha256/",
        "  reads     0 hits, 1 misses, 0 failed, 0 waiting; 1000 bytes served",
        "  fetches   2 requests, 1 retries, 1 failures, 0 in flight; 128.0 KiB received (68.4 KiB on the wire)",
    ):
        assert part in text
    del found["fetches"]["wire_bytes"]  # as a daemon from before an upgrade has it
    assert "in flight; 128.0 KiB received\n" in render(found)
    assert "503" in text
    table = text.splitlines()[-5:]
    assert table[0].split() == ["latency", "count", "p50", "p90", "p99", "max"]
    assert [len(line) for line in table] == [len(table[0])] * 5
    assert table[1].split() == ["reads", "0", "-", "-", "-", "-"]


@pytest.mark.parametrize(("fill", "complete", "verification", "shown"), [
    ("none", False, "unverified", "unverified"), ("idle", False, "unverified", "unverified, being filled"),
    ("full", True, "verified", "verified"),
])  # fmt: skip
def test_how_the_cache_is_shown(blob: BlobFile, fill: str, complete: bool, verification: str, shown: str) -> None:
    found = snap(blob)
    found["cache"] |= {"fill": fill, "complete": complete, "verification": verification}
    (line,) = [line for line in render(found).splitlines() if line.startswith("  present ")]
    assert line.endswith(f" %, {shown}")


@given(st.floats(0, 1e6))
@settings(deadline=None, derandomize=True)
def test_times_are_short(seconds: float) -> None:
    text = show_time(seconds)
    number, unit = text.split()
    assert len(text) < 10
    assert "e" not in number
    assert float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1}[unit] == pytest.approx(seconds, rel=0.006, abs=1e-8)


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 us"), (12e-6, "12 us"), (1.2346e-3, "1.23 ms"), (0.9996, "1 s"), (12.34, "12.3 s"), (1234, "1234 s"),
])  # fmt: skip
def test_some_times(seconds: float, text: str) -> None:
    assert show_time(seconds) == text


def test_rates(blob: BlobFile) -> None:
    before = snap(blob)
    blob.pread(1000, 0)
    blob.pread(1000, 0)
    now = {**snap(blob), "uptime_seconds": before["uptime_seconds"] + 0.5}
    now["fetches"]["wire_bytes"] = before["fetches"]["wire_bytes"] + 1024
    assert rates(before, now) == (
        "43.7 % present, 2 hits/s, 2 misses/s, 3.9 KiB/s served, 256.0 KiB/s received (2.0 KiB/s on the wire), "
        "0 waiting, 0 in flight"
    )
    calm = (
        "43.7 % present, 0 hits/s, 0 misses/s, 0 bytes/s served, 0 bytes/s received (0 bytes/s on the wire), "
        "0 waiting, 0 in flight"
    )
    del before["fetches"]["wire_bytes"]
    assert "256.0 KiB/s received, 0 waiting" in rates(before, now)
    assert rates(now, now) == calm
    assert rates({"error": "it was silent"}, now) == calm
    assert rates({**now, "uptime_seconds": 1e6}, now) == calm  # another daemon, which counts from 0
    assert rates(now, {"error": "it is silent"}) == "it is silent"


# The command


def run_stat(target: str, *, json_: bool = False, watch: float | None = None) -> Iterator[str]:
    """What it writes. A watch goes on for ever: whoever has had enough closes this."""
    said: list[str] = []

    class Enough(BaseException):
        pass

    def write(text: str) -> None:
        said.append(text)
        if watch is not None and len(said) == 3:
            raise Enough

    try:
        stat_command.stat(argparse.Namespace(target=target, json=json_, watch=watch), write, write)
    except Enough:
        pass
    finally:
        yield from said


def test_stat(blob: BlobFile) -> None:
    with daemon(blob._export, record_of(blob._export)):
        (text,) = run_stat("/dev/nbd0")
        assert text.startswith("/mnt: ")
        (text,) = run_stat("/dev/nbd0", json_=True)
        assert json.loads(text)["cache"]["size_bytes"] == SIZE


@pytest.mark.parametrize("terminal", [True, False])
def test_stat_that_goes_on(blob: BlobFile, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: terminal)
    with daemon(blob._export, record_of(blob._export)):
        texts = list(run_stat("/dev/nbd0", watch=0.01))
        assert len(texts) == 3
        for text in texts:
            assert text.startswith("\x1b[H\x1b[J/mnt: ") == terminal
            assert text.splitlines()[-1].startswith("0.0 % present, 0 hits/s")
        assert [json.loads(text)["target"] for text in run_stat("/dev/nbd0", watch=0.01, json_=True)] == ["/mnt"] * 3


def test_stat_of_a_daemon_that_does_not_answer(silent: Silent) -> None:
    said: list[str] = []
    with pytest.raises(MountError, match=r"/mnt: the daemon does not answer within 0\.05 s \(pid .* is there\)"):
        stat_command.stat(argparse.Namespace(target="/dev/nbd1", json=False, watch=None), said.append, said.append)
    assert "no answer" in said[0]


def test_a_watch_ends_with_the_mount(silent: Silent) -> None:
    def write(text: str) -> None:
        assert "the daemon does not answer" in text
        silent.record.remove()

    with pytest.raises(UsageError, match="/dev/nbd1 is not a mount of pyerofs"):
        stat_command.stat(argparse.Namespace(target="/dev/nbd1", json=False, watch=0.01), write, write)
