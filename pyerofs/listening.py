"""Sockets that listen: those of a service manager, and Unix sockets of our own."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping

from .errors import UsageError

_FIRST_FD = 3  # sd_listen_fds(3)


def activated(environ: Mapping[str, str]) -> list[socket.socket]:
    """Return the listening sockets that a service manager has opened for this process (sd_listen_fds(3))."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environ.get("LISTEN_FDS", "")
    found = []
    for fd in range(_FIRST_FD, _FIRST_FD + (int(count) if count.isdecimal() else 0)):
        os.set_inheritable(fd, False)
        found.append(socket.socket(fileno=fd))
    return found


def listen(path: str, backlog: int = 128) -> socket.socket:
    """Return a socket that listens at a path, whose directories are made. Raises UsageError. As bind_unix()."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o711, exist_ok=True)
        return bind_unix(path, backlog)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise UsageError(f"another server listens at {path}, or it is not a socket") from None
        raise UsageError(f"cannot listen at {path}: {e.strerror or e}") from None


def bind_unix(path: str, backlog: int) -> socket.socket:
    """Return a socket that listens at a path, for its owner alone; a killed server's is replaced.

    Raises OSError, EADDRINUSE where another server listens, or something else than a socket is there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(path) and _is_stale(path):
            os.unlink(path)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_stale(path: str) -> bool:
    """Tell whether a killed server has left the socket behind, with no listener."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False  # connecting to any other file is refused as well
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
