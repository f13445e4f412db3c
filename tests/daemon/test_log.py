"""Logging: what each place gets, what happens when it does not take it, and that nobody is held up."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.config.options import LogLevel
from pyerofs.daemon import log
from pyerofs.daemon.log import FileSink, JournalSink, Logger, LogMessage, StderrSink, SyslogSink, open_logger


class Memory:
    """Refuses messages while `full`."""

    def __init__(self) -> None:
        self.messages: list[LogMessage] = []
        self.full = self.closed = False

    def write(self, message: LogMessage) -> None:
        if self.full:
            raise BlockingIOError
        self.messages.append(message)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """journald's and syslogd's socket in one."""
    path = str(tmp_path / "socket")
    monkeypatch.setattr(log, "JOURNAL_SOCKET", path)
    monkeypatch.setattr(log, "SYSLOG_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(20)
        yield sock


def parse_journal(data: bytes) -> dict[str, str]:
    """systemd.io/JOURNAL_NATIVE_PROTOCOL, read independently."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", data[:8])
            value = data[8 : 8 + length]
            assert data[8 + length : 9 + length] == b"\n"
            data = data[9 + length :]
        assert re.fullmatch(rb"[A-Z][A-Z0-9_]*", name)
        found[name.decode()] = value.decode()
    return found


# The logger


@pytest.mark.parametrize(("least", "expected"), [
    ("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e"),
])  # fmt: skip
def test_levels(least: LogLevel, expected: str) -> None:
    sink = Memory()
    logger = Logger(sink, least)
    for write in (logger.debug, logger.info, logger.warning, logger.error):
        write("text")
    assert "".join(message.level[0] for message in sink.messages) == expected


def test_as_a_function_it_warns() -> None:
    sink = Memory()
    Logger(sink)("text")
    assert [(m.level, m.text) for m in sink.messages] == [("warning", "text")]


def test_fields() -> None:
    sink = Memory()
    logger = Logger(sink, target="/mnt", id="1")
    logger.info("one", digest="d")
    logger.bind(source="app", id="2")
    logger.info("two")
    assert [m.fields for m in sink.messages] == [
        {"target": "/mnt", "id": "1", "digest": "d"}, {"target": "/mnt", "id": "2", "source": "app"},
    ]  # fmt: skip


def test_what_is_lost_is_told() -> None:
    sink = Memory()
    logger = Logger(sink)
    sink.full = True
    logger.error("one")
    logger.error("two")
    sink.full = False
    logger.error("three")
    logger.error("four")
    assert [m.text for m in sink.messages] == ["three (2 messages before this one were lost)", "four"]


def test_a_text_has_an_end() -> None:
    sink = Memory()
    Logger(sink).info("x" * 1_000_000)
    assert len(sink.messages[0].text) == log.TEXT_MAX


def test_after_close_nothing_goes() -> None:
    sink = Memory()
    logger = Logger(sink)
    logger.close()
    logger.close()
    logger.error("text")
    assert sink.closed
    assert not sink.messages


def test_threads_do_not_mix_their_messages(tmp_path: Path) -> None:
    logger = Logger(FileSink(str(tmp_path / "log")))

    def write(name: str) -> None:
        for i in range(200):
            logger.info(f"{name} {i} " + "x" * 500)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line)["message"].split()[:2] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(lines) == 800
    for name in "abcd":
        assert [int(number) for who, number in lines if who == name] == list(range(200))


# journald


def test_journal(listener: socket.socket) -> None:
    with closing(Logger(JournalSink(), target="/mnt", id="pyerofs-1", source="quay.io/app:1")) as logger:
        logger.error("it broke")
    assert parse_journal(listener.recv(1 << 16)) == {
        "MESSAGE": "it broke",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "pyerofs",
        "SYSLOG_PID": str(os.getpid()),
        "PYEROFS_TARGET": "/mnt",
        "PYEROFS_ID": "pyerofs-1",
        "PYEROFS_SOURCE": "quay.io/app:1",
    }


@given(st.text(max_size=500), st.text(max_size=100))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_no_text_forges_a_field_of_the_journal(text: str, target: str) -> None:
    data = b"".join(log._journal_field(name, value) for name, value in (("MESSAGE", text), ("PYEROFS_TARGET", target)))
    expected = {"MESSAGE": text, "PYEROFS_TARGET": target}
    assert parse_journal(data) == {name: value.encode(errors="replace").decode() for name, value in expected.items()}


def test_a_journal_that_takes_nothing_holds_up_nobody(listener: socket.socket) -> None:
    logger = Logger(JournalSink())
    for i in range(5000):  # far more than a socket holds
        logger.info(f"{i} " + "x" * 1000)
    taken = 1
    listener.recv(1 << 16)
    listener.setblocking(False)
    while True:
        try:
            listener.recv(1 << 16)
            taken += 1
        except BlockingIOError:
            break
    logger.info("last")
    text = parse_journal(listener.recv(1 << 16))["MESSAGE"]
    assert text == f"last ({5000 - taken} messages before this one were lost)"
    logger.close()


def test_a_journal_that_is_restarted(listener: socket.socket, tmp_path: Path) -> None:
    logger = Logger(JournalSink())
    logger.info("one")
    path = Path(log.JOURNAL_SOCKET)
    path.unlink()
    logger.info("two")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as successor:
        successor.bind(str(path))
        logger.info("three")
        assert "three (1 messages" in parse_journal(successor.recv(1 << 16))["MESSAGE"]
    logger.close()


# syslog and standard error


def test_syslog(listener: socket.socket) -> None:
    logger = Logger(SyslogSink(), target="/mnt")
    logger.warning("two\nlines\x1b[31m and \u2028 caf\xe9")
    text = listener.recv(1 << 16).decode()
    stamp = r"[A-Z][a-z]{2} [ 1-3][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2}"
    assert re.fullmatch(rf"<28>{stamp} pyerofs\[{os.getpid()}\]: .*", text)
    logger.close()
    assert text.endswith("]: /mnt: two\\nlines\\x1b[31m and \\u2028 caf\xe9")


def test_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    logger = Logger(StderrSink())
    logger.info("one\ntwo")
    logger.info("x" * 100_000)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "pyerofs: info: one\\ntwo"
    assert len(lines) == 2
    logger.close()


def test_a_full_pipe_holds_up_nobody() -> None:
    reader, writer = os.pipe()
    before = os.dup(2)
    try:
        os.dup2(writer, 2)
        sink = StderrSink()
    finally:
        os.dup2(before, 2)
        os.close(before)
    logger = Logger(sink)
    for _ in range(100):
        logger.info("x" * 4000)
    got = os.read(reader, 1 << 20)
    assert got.endswith(b"\n")
    logger.info("last")
    assert b"messages before this one were lost" in os.read(reader, 1 << 20)
    logger.close()
    os.close(reader)
    os.close(writer)


# A file


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logger = Logger(FileSink(str(path)), target="/mnt", id="1")
    logger.info("one\n\x00caf\xe9\udc80", digest="d")
    (entry,) = lines(path)
    assert list(entry) == ["time", "level", "target", "id", "message", "digest"]
    assert re.fullmatch(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z", entry.pop("time"))
    assert entry == {"level": "info", "target": "/mnt", "id": "1", "message": "one\n\x00caf\xe9\udc80", "digest": "d"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_in_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text in ("one", "two"):
        logger = Logger(FileSink(str(path)))
        logger.info(text)
        logger.close()
    assert [entry["message"] for entry in lines(path)] == ["one", "two"]


@pytest.mark.parametrize("way", ["renamed", "removed", "replaced", "cut"])
def test_rotation(tmp_path: Path, way: str) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    logger = Logger(FileSink(str(path)))
    logger.info("one")
    if way == "cut":
        os.truncate(path, 0)
    elif way == "removed":
        path.unlink()
    else:
        path.rename(old)
    if way == "replaced":
        path.touch(0o640)
    logger.info("two")
    assert [entry["message"] for entry in lines(path)] == ["two"]
    if old.exists():
        assert [entry["message"] for entry in lines(old)] == ["one"]


def test_a_directory_that_goes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "sub/log"
    path.parent.mkdir()
    logger = Logger(FileSink(str(path)))
    path.unlink()
    path.parent.rmdir()
    logger.info("one")
    path.parent.mkdir()
    logger.info("two")
    assert [entry["message"] for entry in lines(path)] == ["two (1 messages before this one were lost)"]


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    """As on a disk that is full for a while."""
    from tests.support.coreharness import rlimit_fsize

    path = tmp_path / "log"
    logger = Logger(FileSink(str(path)))
    logger.info("one")
    with rlimit_fsize(path.stat().st_size + 10):
        logger.info("two")
        logger.info("three")
    logger.info("four")
    first, torn, last = path.read_text().splitlines()
    assert json.loads(first)["message"] == "one"
    assert len(torn) == 10
    assert json.loads(last)["message"] == "four (2 messages before this one were lost)"


# Which of them


@pytest.mark.parametrize(("to", "there", "kind"), [
    ("auto", True, JournalSink), ("auto", False, SyslogSink), ("journal", False, JournalSink),
    ("syslog", True, SyslogSink), ("stderr", True, StderrSink),
])  # fmt: skip
def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, to: str, there: bool, kind: type) -> None:
    monkeypatch.setattr(log, "JOURNAL_SOCKET", str(tmp_path / ("" if there else "none")))
    logger = open_logger(to, "info", pytest.fail)
    assert isinstance(logger._sink, kind)
    logger.close()


def test_a_file_that_will_not_do_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "fifo")  # which nobody reads
    for name, reason in (
        ("none/log", "No such file"),
        ("", "Is a directory"),
        ("link", "Too many levels of symbolic"),
        ("fifo", "No such"),
    ):
        logger = open_logger(str(tmp_path / name), "info", said.append)
        assert isinstance(logger._sink, JournalSink | SyslogSink)
        logger.close()
        assert f"log.to={tmp_path / name}: {reason}" in said.pop()
    assert not (tmp_path / "precious").exists()
    logger = open_logger(str(tmp_path / "log"), "info", said.append, target="/mnt")
    logger.info("text")
    assert lines(tmp_path / "log")[0]["target"] == "/mnt"
    assert not said
