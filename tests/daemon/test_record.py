"""Records: what a daemon says of itself."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pyerofs.daemon import record as module
from pyerofs.daemon.record import LayerRecord, Record, read_all, start_of
from pyerofs.errors import UnavailableError


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run" / "pyerofs"
    path.parent.mkdir()
    monkeypatch.setattr(module, "DIRECTORY", str(path))
    return path


@pytest.fixture
def record() -> Record:
    pid = os.getpid()
    part = LayerRecord("pyerofs-1-2", "/dev/nbd3", 4096, "sha256:00", 2, how="netlink")
    return Record("pyerofs-1-2", pid, start_of(pid), "/mnt/ü", "host/app:1", "nbd", "/dev/nbd3", (part,))


def test_round_trip(record: Record, directory: Path) -> None:
    assert read_all() == []
    record.write()
    assert read_all() == [record]
    second = replace(record, id="pyerofs-1-3", target="/a")
    second.write()
    second.write()
    assert read_all() == [second, record]  # by target
    record.remove()
    record.remove()
    assert read_all() == [second]
    assert [path.name for path in directory.iterdir()] == ["pyerofs-1-3.json"]


def test_a_stack(record: Record, directory: Path) -> None:
    assert not record.stacked and record.how == "netlink" and record.size == 4096
    second = replace(record.parts[0], id="pyerofs-1-2.1", device="/dev/nbd4", layer=3)
    stack = replace(record, device=record.id, parts=(*record.parts, second))
    assert stack.stacked and stack.how == "netlink" and stack.size == 8192
    assert replace(stack, parts=(*record.parts, replace(second, how="ioctl"))).how == "ioctl"
    stack.write()
    assert read_all() == [stack]
    assert os.listdir(stack.directory) == [] and Path(stack.directory).stat().st_mode & 0o777 == 0o700
    stack.remove()
    assert os.listdir(directory) == []


def test_it_is_for_root_only(record: Record, directory: Path) -> None:
    before = os.umask(0)
    try:
        record.write()
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert Path(record.path).stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_has_ended_is_not_listed(record: Record) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for dead in (replace(record, pid=ended.pid), replace(record, started=record.started + 1), replace(record, pid=-1)):
        dead.write()
        assert not dead.alive()
        assert read_all() == []
    assert record.alive()


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"1", b"{}", b"\xff\xfe",
    b'{"version": 1}', b'{"version": 99}', b'{"version": 1, "pid": "x"}',
])  # fmt: skip
def test_what_is_no_record_is_left_out(record: Record, directory: Path, content: bytes) -> None:
    record.write()
    (directory / "pyerofs-9-9.json").write_bytes(content)
    (directory / "other").write_bytes(content)
    assert read_all() == [record]


def test_fields_that_we_do_not_know(record: Record, directory: Path) -> None:
    record.write()
    values = json.loads(Path(record.path).read_text())
    (directory / "new.json").write_text(json.dumps({**values, "unheard": 1}))
    (directory / "later.json").write_text(json.dumps({**values, "version": module.VERSION + 1}))
    assert read_all() == [record]


def test_a_link_in_its_place_is_not_followed(record: Record, directory: Path, tmp_path: Path) -> None:
    directory.mkdir(mode=0o700)
    (tmp_path / "precious").write_text("mine")
    Path(record.path).symlink_to(tmp_path / "precious")
    record.write()
    assert not Path(record.path).is_symlink()
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_directory_that_cannot_be_made(record: Record, directory: Path) -> None:
    directory.write_text("a file")
    with pytest.raises(UnavailableError):
        record.write()


@pytest.mark.parametrize("pid", [0, -1, 1 << 22])
def test_no_such_process(pid: int) -> None:
    assert start_of(pid) == 0
