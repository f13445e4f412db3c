"""JSON messages, one a line, over a connected Unix stream socket; a message may bring descriptors."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

_MESSAGE_MAX = 4 << 20  # bytes: a process's environment goes in one
_FDS_MAX = 128  # in one piece of a message; the kernel takes up to 253


class Channel:
    """A connected Unix stream socket for messages and descriptors.

    Owns its socket until close(), and the descriptors that have come until take_fds(). Sending is thread-safe,
    receiving is for one thread.
    """

    def __init__(self, sock: socket.socket):
        self.socket = sock
        self._buffer = b""
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, values: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message; the descriptors stay the caller's. Raises OSError."""
        line = json.dumps(values).encode() + b"\n"
        for first in range(0, len(fds), _FDS_MAX):
            # A byte carries as many as go with one, so that any message is long enough for all that it may bring.
            line = line[socket.send_fds(self.socket, [line[:1]], list(fds[first : first + _FDS_MAX])) :]
        self.socket.sendall(line)

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises EOFError when the other side has hung up, OSError, and ValueError for what is no message.
        """
        while b"\n" not in self._buffer:
            piece, fds, _, _ = socket.recv_fds(self.socket, 1 << 16, _FDS_MAX)
            self._fds += fds
            for fd in fds:
                os.set_inheritable(fd, False)
            if not piece:
                raise EOFError("the other side hung up")
            self._buffer += piece
            if len(self._buffer) > _MESSAGE_MAX:
                raise ValueError("its message is too long")
        line, _, self._buffer = self._buffer.partition(b"\n")
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("it sent something that is not a message")
        return values

    def pending(self) -> bool:
        """Whether a message is here already, for which poll(2) would wait in vain."""
        return b"\n" in self._buffer

    def take_fds(self) -> list[int]:
        """Return the descriptors that have come, from now on the caller's."""
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        self.socket.close()
        for fd in self.take_fds():
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
