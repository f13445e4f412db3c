"""Connections: two threads for each NBD client, one that reads requests and one that sends what had to wait."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

from ..core import EXPORT_FLAGS, PAUSED, SOFT_DISCONNECT, Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Export

HANDSHAKE_TIMEOUT = 30.0  # seconds for all that a client has to negotiate
WAKE = signal.SIGUSR1  # ends a connection's wait for its next request; pause() needs a handler for it
WAKE_INTERVAL = 0.01  # seconds; a signal that comes just before the wait begins is lost


class Server:
    """Serves one export. Owns the sockets that it is given.

    `fileno()` becomes readable when a client's connection has ended: acknowledge() then tells how many are left.
    """

    ended_softly = False  # some client has said with NBD_CMD_DISC that it is done

    def __init__(self, export: Export, log: Callable[[str], None]):
        self._export = export
        self._log = log
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, Connection] = {}
        self._threads: set[threading.Thread] = set()  # those of clients, and those that are ending
        self._monitors: set[threading.Thread] = set()
        self._peers: dict[threading.Thread, str] = {}
        self._paused: list[socket.socket] = []
        self._ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._ended

    def acknowledge(self) -> int:
        os.eventfd_read(self._ended)
        return self.clients()

    def clients(self) -> int:
        with self._lock:
            return len(self._clients.keys() - self._monitors)

    def clients_of(self, peer: str) -> int:
        """How many connections of this peer, as add() was told it, have not ended."""
        with self._lock:
            return sum(each == peer for each in self._peers.values())

    def add(self, sock: socket.socket, *, handshake: bool, monitor: bool = False, peer: str = "") -> None:
        """Serve the client on this connected socket.

        Without a handshake it is a kernel's, or a monitor's, which does not count as a client. `peer`: whose it is, for
        clients_of(). Raises RuntimeError when no thread can be started for it; the socket is the caller's then.
        """
        connection = Connection(self._export.store, sock.fileno(), EXPORT_FLAGS)
        thread = threading.Thread(target=self._serve, args=(sock, connection, handshake), name="pyerofs-serve")
        with self._lock:
            self._clients[thread] = connection
            self._threads.add(thread)
            self._peers[thread] = peer
            if monitor:
                self._monitors.add(thread)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                del self._clients[thread], self._peers[thread]
                self._threads.remove(thread)
                self._monitors.discard(thread)
            connection.close()
            raise

    def _serve(self, sock: socket.socket, connection: Connection, handshake: bool) -> None:
        reason = None
        try:
            name = self._export.source.name
            if not handshake or connection.handshake(name, name, HANDSHAKE_TIMEOUT):
                reason = self._transmit(connection)
        except OSError as e:
            self._log(f"a client's connection ended: {e.strerror}")
        except RuntimeError as e:  # no second thread
            self._log(f"a client's connection ended: {e}")
        finally:
            with self._lock:
                del self._clients[threading.current_thread()]  # from now on drain() and stop() are not called
            connection.close()
            if reason != PAUSED:
                sock.close()
            with self._lock:
                if reason == PAUSED:
                    self._paused.append(sock)
                self._threads.remove(threading.current_thread())
                del self._peers[threading.current_thread()]
                if threading.current_thread() in self._monitors:
                    self._monitors.remove(threading.current_thread())
                else:
                    self.ended_softly |= reason == SOFT_DISCONNECT
                    os.eventfd_write(self._ended, 1)

    def _transmit(self, connection: Connection) -> int:
        sender = threading.Thread(target=self._send, args=(connection,), name="pyerofs-send")
        sender.start()
        try:
            return connection.serve()  # a client that hangs up without NBD_CMD_DISC is nothing to speak of
        finally:
            sender.join()

    def _send(self, connection: Connection) -> None:
        try:
            connection.send()
        except OSError as e:
            self._log(f"a client took no more replies: {e.strerror}")

    def drain(self) -> None:
        """Answer the reads that are under way, then end the connections."""
        with self._lock:
            for connection in self._clients.values():
                connection.drain()

    def begin_pause(self) -> list[threading.Thread]:
        """Start what pause() waits for, so that several servers take no longer than one.

        Return the threads that do it.
        """
        with self._lock:
            threads = [thread for thread in self._clients if thread not in self._monitors]
            for thread in threads:
                self._clients[thread].pause()
        for thread in threads:
            _wake(thread)
        return threads

    def pause(self) -> list[socket.socket]:
        """End every client's connection between two requests, and return the sockets on which another server can go on.

        Nd every client's connection between two requests, and return the sockets on which another server can go on.

        Those that could not be brought there within about a second are closed. The caller owns the sockets.
        """
        for thread in self.begin_pause():
            while thread.is_alive():
                thread.join(WAKE_INTERVAL)
                _wake(thread)  # the first signal may have come too early
        with self._lock:
            paused, self._paused = self._paused, []
        return paused

    def stop(self) -> None:
        with self._lock:
            for connection in self._clients.values():
                connection.stop()

    def close(self) -> None:
        """End every connection and wait for that."""
        self.stop()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        os.close(self._ended)


def _wake(thread: threading.Thread) -> None:
    if thread.is_alive():
        assert thread.ident is not None  # noqa: S101 - it has been started
        signal.pthread_kill(thread.ident, WAKE)
