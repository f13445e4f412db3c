"""Sockets that listen: those of a service manager, and Unix sockets of our own."""

from __future__ import annotations

import contextlib
import os
import socket
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
    """Return a socket that listens at a path, for its owner alone; a killed server's is replaced.

    Raises UsageError where another one listens.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o711, exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(FileNotFoundError):
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise UsageError(f"another server listens at {path}")
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(backlog)
    except OSError as e:
        listener.close()
        raise UsageError(f"cannot listen at {path}: {e.strerror or e}") from None
    except BaseException:
        listener.close()
        raise
    return listener
