"""The smallest NBD server in the transmission phase: serves bytes to the kernel over socketpairs, for tests."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

REQUEST = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
REPLY = struct.Struct(">IIQ")  # magic, error, cookie
CMD_READ, CMD_DISC = 0, 2

FLAGS_READ_ONLY = 0b11  # HAS_FLAGS, READ_ONLY
FLAG_MULTI_CONN = 1 << 8


class Server:
    """Serves `data` on `connections` sockets, a thread each; `kernel_ends` are what attach() wants.

    `gate` cleared: reads are taken but not answered until it is set. `reads` counts the reads of each connection,
    `taken` is set by any read, `disc` by NBD_CMD_DISC, `ended` when no connection is left.
    """

    def __init__(self, data: bytes, connections: int = 1) -> None:
        self.data = data
        self.gate = threading.Event()
        self.gate.set()
        self.taken = threading.Event()
        self.disc = threading.Event()
        self.ended = threading.Event()
        self.reads = [0] * connections
        self._lock = threading.Lock()
        self._left = connections
        pairs = [socket.socketpair() for _ in range(connections)]
        self._kernel_ends = [theirs for _, theirs in pairs]
        self._ours = [ours for ours, _ in pairs]
        for number in range(connections):
            threading.Thread(target=self._run, args=(number,), daemon=True).start()

    @property
    def kernel_ends(self) -> list[int]:
        return [end.fileno() for end in self._kernel_ends]

    def release(self) -> None:
        """Close our copies of the kernel's ends, as a daemon does once it is attached."""
        for end in self._kernel_ends:
            end.close()

    def kill(self) -> None:
        """Die as a process does: every socket closed, nothing more answered."""
        for ours in self._ours:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
        self.gate.set()
        assert self.ended.wait(10)

    def _run(self, number: int) -> None:
        sock = self._ours[number]
        with contextlib.suppress(OSError):
            while header := self._receive(sock, REQUEST.size):
                _, _, command, cookie, offset, length = REQUEST.unpack(header)
                if command == CMD_DISC:
                    self.disc.set()
                    break
                assert command == CMD_READ
                self.reads[number] += 1
                self.taken.set()
                self.gate.wait()
                sock.sendall(REPLY.pack(0x67446698, 0, cookie) + self.data[offset : offset + length])
        sock.close()
        with self._lock:
            self._left -= 1
            if not self._left:
                self.ended.set()

    def _receive(self, sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size and (piece := sock.recv(size - len(data))):
            data += piece
        return data if len(data) == size else b""
