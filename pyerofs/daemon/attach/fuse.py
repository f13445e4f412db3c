"""Attach an export as a file that nbdfuse shows, for kernels without NBD."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING

from ... import program
from ...errors import MountError, UnavailableError
from ...kernel import mountpoint
from .. import record

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...export.server import Server

PROGRAM = "nbdfuse"
DEADLINE = 10.0  # seconds for it to show its file
END_DEADLINE = 5.0  # seconds for it to go


class FuseAttachment:
    """`said` gets each line that nbdfuse writes, for as long as it runs; it must not wait."""

    how = "fuse"

    def __init__(self, server: Server, identifier: str, said: Callable[[str], None]):
        """Start nbdfuse. Raises UnavailableError, MountError."""
        path = program.find(PROGRAM)
        if path is None:
            raise UnavailableError(f"{PROGRAM} is not installed: apt-get install libnbd-bin fuse3")
        self._directory = os.path.join(record.DIRECTORY, identifier)
        self.path = os.path.join(self._directory, "image")
        ours, clients = socket.socketpair()
        try:
            record.make_directory()
            os.mkdir(self._directory, mode=0o700)
            server.add(ours, handshake=True)
            with mountpoint.MountWatch() as watch:
                self._process = program.start(
                    [path, "--readonly", self.path, "--fd", str(clients.fileno())],
                    stderr=True,
                    pass_fds=[clients.fileno()],
                )
                clients.close()
                assert self._process.stderr is not None  # noqa: S101 - it is a pipe
                self._drain = program.Drain(os.dup(self._process.stderr.fileno()), said)
                self._process.stderr.close()
                try:
                    self._wait(watch)
                except BaseException:
                    self.abort()
                    raise
        except OSError as e:
            with contextlib.suppress(OSError):
                os.rmdir(self._directory)
            raise UnavailableError(f"cannot start {PROGRAM}: {e.strerror}") from None
        finally:
            clients.close()

    def _wait(self, watch: mountpoint.MountWatch) -> None:
        poll = select.poll()
        poll.register(watch.fileno(), watch.EVENTS)
        ended = os.pidfd_open(self._process.pid)
        try:
            poll.register(ended, select.POLLIN)
            deadline = time.monotonic() + DEADLINE
            while not self._shown():
                remaining = deadline - time.monotonic()
                if ended in dict(poll.poll(max(0.0, remaining) * 1000)):
                    self._drain.join(END_DEADLINE)
                    raise MountError(f"{PROGRAM}: {self._drain.last or 'it exited without a message'}")
                if remaining <= 0:
                    raise MountError(f"{PROGRAM} showed no file within {DEADLINE:g} s")
        finally:
            os.close(ended)

    def _shown(self) -> bool:
        return mountpoint.find(self._directory) is not None

    def mounted(self) -> None:
        pass

    def reconnect(self) -> bool:
        return False  # nbdfuse has the one connection that it was started with

    def is_mounted(self) -> bool:
        return any(mount.fstype == "erofs" and mount.source == self.path for mount in mountpoint.mountinfo())

    def release(self) -> bool:
        with contextlib.suppress(MountError):
            mountpoint.umount(self._directory)
            self.abort()
            return True
        return False  # busy: another mount namespace has the filesystem, or a process has the file open

    def abort(self) -> None:
        while self._shown():
            mountpoint.umount(self._directory, mountpoint.MNT_DETACH | mountpoint.UMOUNT_NOFOLLOW)
        self._process.terminate()
        if program.wait(self._process, END_DEADLINE) is None:
            program.end(self._process)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._directory)
