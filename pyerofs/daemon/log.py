"""Where the messages of a process without a terminal go: journald, syslog, standard error, or a file of JSON lines.

Logging never blocks: a message that is not taken at once is lost, counted, and reported with the next one.
What a message says is its writer's business: it holds no secret, as no error's text does.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..printable import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..config.options import LogLevel

JOURNAL_SOCKET = "/run/systemd/journal/socket"
SYSLOG_SOCKET = "/dev/log"
TEXT_MAX = 8192  # characters of a message
_PIPE_ROOM = select.PIPE_BUF  # bytes that a pipe which can be written to surely takes at once
_NAME = "pyerofs"
_PRIORITY: dict[LogLevel, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # syslog(3)
_DAEMON = 3 << 3  # its facility
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class LogMessage(NamedTuple):
    """`when`: seconds since the epoch. `fields`: what it is about, by names in lower case."""

    level: LogLevel
    text: str
    fields: Mapping[str, str]
    when: float


class Sink(Protocol):
    """Takes messages, one at a time. Raises OSError for one that does not go at once."""

    def write(self, message: LogMessage) -> None: ...

    def close(self) -> None: ...


class Logger:
    """Messages of `level` and above go to `sink`, which it owns until close(), each with the `fields`. Any thread.

    As a function of a text it is warning(): what most of our parts want to be given.
    """

    def __init__(self, sink: Sink, level: LogLevel = "info", **fields: str):
        self._sink: Sink | None = sink
        self._least = _PRIORITY[level]
        self._fields = fields
        self._lock = threading.Lock()
        self._lost = 0

    def bind(self, **fields: str) -> None:
        """Add fields to every later message."""
        with self._lock:
            self._fields = {**self._fields, **fields}

    def debug(self, text: str, **fields: str) -> None:
        self._write("debug", text, fields)

    def info(self, text: str, **fields: str) -> None:
        self._write("info", text, fields)

    def warning(self, text: str, **fields: str) -> None:
        self._write("warning", text, fields)

    def error(self, text: str, **fields: str) -> None:
        self._write("error", text, fields)

    def __call__(self, text: str) -> None:
        self.warning(text)

    def _write(self, level: LogLevel, text: str, fields: Mapping[str, str]) -> None:
        if _PRIORITY[level] > self._least:
            return
        with self._lock:
            if self._sink is None:
                return
            text = text[:TEXT_MAX]
            if self._lost:
                text += f" ({self._lost} messages before this one were lost)"
            try:
                self._sink.write(LogMessage(level, text, {**self._fields, **fields}, time.time()))
                self._lost = 0
            except OSError:
                self._lost += 1

    def close(self) -> None:
        """Later messages go nowhere."""
        with self._lock:
            if self._sink is not None:
                self._sink.close()
                self._sink = None


def open_logger(to: str, level: LogLevel, report: Callable[[str], None], **fields: str) -> Logger:
    """Open the logger for the options log.to and log.level.

    No mount ends for want of a log: a file that cannot be used is reported, and "auto" taken instead.
    """
    if os.path.isabs(to):
        try:
            return Logger(FileSink(to), level, **fields)
        except OSError as error:
            report(f"log.to={to}: {error.strerror}; messages go to the journal or to syslog")
            to = "auto"
    if to == "auto":
        to = "journal" if os.path.exists(JOURNAL_SOCKET) else "syslog"
    sinks: dict[str, Callable[[], Sink]] = {"journal": JournalSink, "syslog": SyslogSink, "stderr": StderrSink}
    return Logger(sinks[to](), level, **fields)


class _Datagrams:
    """A socket to the path's current listener: the daemon there may be restarted."""

    def __init__(self, path: str):
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, data: bytes) -> None:
        self._socket.sendto(data, self._path)

    def close(self) -> None:
        self._socket.close()


class JournalSink:
    """journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL); each field becomes PYEROFS_NAME."""

    def __init__(self) -> None:
        self._datagrams = _Datagrams(JOURNAL_SOCKET)

    def write(self, message: LogMessage) -> None:
        entry = {
            "MESSAGE": one_line(message.text),  # journalctl shows what has control characters as "blob data"
            "PRIORITY": str(_PRIORITY[message.level]),
            "SYSLOG_IDENTIFIER": _NAME,
            "SYSLOG_PID": str(os.getpid()),
            **{f"PYEROFS_{name.upper()}": value for name, value in message.fields.items()},
        }
        self._datagrams.send(b"".join(_journal_field(name, value) for name, value in entry.items()))

    def close(self) -> None:
        self._datagrams.close()


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


class SyslogSink:
    """A line for /dev/log, as syslog(3) writes it."""

    def __init__(self) -> None:
        self._datagrams = _Datagrams(SYSLOG_SOCKET)

    def write(self, message: LogMessage) -> None:
        now = time.localtime(message.when)
        stamp = f"{_MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {time.strftime('%H:%M:%S', now)}"
        priority = _DAEMON | _PRIORITY[message.level]
        self._datagrams.send(f"<{priority}>{stamp} {_NAME}[{os.getpid()}]: {_line(message)}".encode(errors="replace"))

    def close(self) -> None:
        self._datagrams.close()


class StderrSink:
    """Lines for the standard error that this process was started with, which stays open for that."""

    def __init__(self) -> None:
        self._fd = os.dup(2)

    def write(self, message: LogMessage) -> None:
        line = f"{_NAME}: {message.level}: {_line(message)}".encode(errors="replace")[: _PIPE_ROOM - 1] + b"\n"
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not any(events & select.POLLOUT for _, events in poll.poll(0)):
            raise BlockingIOError
        os.write(self._fd, line)

    def close(self) -> None:
        os.close(self._fd)


def _line(message: LogMessage) -> str:
    """For readers of lines."""
    target = message.fields.get("target", "")
    text = f"{target}: {message.text}" if target else message.text
    return one_line(text)


class FileSink:
    """JSON lines at the end of a file (mode 0600), which is opened anew when it was renamed or removed."""

    def __init__(self, path: str):
        """Open the file. Raises OSError."""
        self._path = path
        self._torn = False  # the last line is not whole
        self._fd = self._open()

    def _open(self) -> int:
        # Without O_NONBLOCK a named pipe would hold us up.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)

    def write(self, message: LogMessage) -> None:
        import json

        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(message.when))
        first = {name: message.fields[name] for name in ("target", "id") if name in message.fields}
        entry = {
            "time": f"{stamp}.{int(message.when % 1 * 1000):03}Z",
            "level": message.level,
            **first,
            "message": message.text,
            **message.fields,
        }
        self._follow()
        line = (b"\n" if self._torn else b"") + json.dumps(entry).encode() + b"\n"
        wrote = os.write(self._fd, line)
        self._torn = wrote < len(line)
        if self._torn:
            raise OSError

    def _follow(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                return
        fd = self._open()
        os.close(self._fd)
        self._fd, self._torn = fd, False

    def close(self) -> None:
        os.close(self._fd)
