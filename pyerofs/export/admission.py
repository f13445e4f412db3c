"""Which clients `serve` admits: none may use up what all need, and a shortage is waited out."""

from __future__ import annotations

import resource
import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .server import Server

CLIENTS = 1024  # connections at once, two threads each
CLIENTS_OF_PEER = 256  # of one address, or of one user on a Unix socket
REPEAT = 60.0  # seconds until a refusal is logged again

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


def peer_of(sock: socket.socket) -> str:
    """Name the other end of a connected socket: an address, or a user where it is a Unix socket. Raises OSError."""
    if sock.family == socket.AF_UNIX:
        _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return f"user {uid}"
    return str(sock.getpeername()[0])


class Admission:
    """Takes clients into a server, or refuses them, with a line in the log. For the main thread only."""

    def __init__(self, server: Server, log: Callable[[str], None]):
        self._server = server
        self._log = log
        self._told: dict[str, float] = {}
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = CLIENTS if descriptors == resource.RLIM_INFINITY else min(CLIENTS, max(2, descriptors // 2))
        self._most_of_peer = min(CLIENTS_OF_PEER, self._most // 2)

    def admit(self, sock: socket.socket) -> bool:
        """Serve the client on this socket, or close it.

        False: something is short, and no client should be accepted for a moment.
        """
        try:
            peer = peer_of(sock)
        except OSError:
            sock.close()  # it has gone again
            return True
        if (refusal := self._refusal(peer)) is not None:
            self.say(peer, f"refused a connection from {peer}: {refusal}")
            sock.close()
            return True
        try:
            self._server.add(sock, handshake=True, peer=peer)
        except (OSError, RuntimeError, MemoryError) as e:
            self.say("", f"refused a connection from {peer}: {e}")
            sock.close()
            return False
        return True

    def _refusal(self, peer: str) -> str | None:
        if self._server.clients_of(peer) >= self._most_of_peer:
            return f"it has {self._most_of_peer} connections already"
        if self._server.clients() >= self._most:
            return f"{self._most} clients are connected"
        return None

    def say(self, about: str, text: str) -> None:
        """Log a line about a peer, or about all of them (""), unless one was logged a short time ago."""
        now = time.monotonic()
        if now - self._told.get(about, -REPEAT) < REPEAT:
            return
        if len(self._told) >= CLIENTS:
            self._told.clear()
        self._told[about] = now
        self._log(text)
