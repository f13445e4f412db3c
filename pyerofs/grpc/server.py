"""A gRPC server on Unix sockets: a thread for each connection, and some for the handlers.

For trusted clients: whoever may open the socket. Even so no client can make it wait, grow without bounds, or end.
"""

from __future__ import annotations

import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ..errors import UnavailableError
from ..events import Events
from ..listening import activated, listen
from .call import Call, Method
from .connection import ServerConnection

__all__ = ["Call", "GrpcServer", "Method", "activated", "listen", "serve"]

_IDLE = 10.0  # seconds after which a thread without work ends
_WAITING = 1024  # calls that wait for a thread


class GrpcServer:
    """`methods` by their paths, as in /package.Service/Method. add() and close() are for one thread.

    `log` gets a line for each client that loses its connection, and each handler that fails; `threads` for handlers,
    `largest`: bytes of a message, `clients`: at the same time.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        log: Callable[[str], None],
        *,
        threads: int = 32,
        largest: int = 4 << 20,
        clients: int = 64,
    ) -> None:
        self._methods = methods
        self._log = log
        self._largest = largest
        self._clients = clients
        self._threads = threads
        self._lock = threading.Lock()
        self._connections: set[ServerConnection] = set()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._alive = 0  # threads
        self._pending = 0  # calls that wait for one, or have one

    def add(self, sock: socket.socket) -> bool:
        """Serve a client, whose socket is the server's from now on. False: there are too many."""
        with self._lock:
            if len(self._connections) >= self._clients:
                self._log(f"a client was turned away: there are {self._clients} already")
                sock.close()
                return False
            connection = ServerConnection(sock, self._methods, self._submit, self._log, self._largest)
            self._connections.add(connection)
        try:
            threading.Thread(target=self._serve, args=(connection,), name="pyerofs-grpc", daemon=True).start()
        except RuntimeError:
            self._log("a client was turned away: no thread can be started")
            connection.close()
            self._connections.discard(connection)
            sock.close()
            return False
        return True

    def _serve(self, connection: ServerConnection) -> None:
        try:
            connection.run()
        finally:
            with self._lock:
                self._connections.discard(connection)

    def close(self, seconds: float = 0.0) -> None:
        """Answer what is under way, for so many seconds at most, and close all connections."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.drain()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not all(connection.idle() for connection in connections):
            time.sleep(0.01)
        for connection in connections:
            connection.close()

    # Threads for handlers

    def _submit(self, work: Callable[[], None]) -> bool:
        with self._lock:
            if self._pending >= self._threads + _WAITING:
                return False
            if self._pending >= self._alive and self._alive < self._threads:
                try:
                    threading.Thread(target=self._run, name="pyerofs-call", daemon=True).start()
                except RuntimeError:
                    if not self._alive:
                        return False
                else:
                    self._alive += 1
            self._pending += 1
        self._work.put(work)
        return True

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if self._pending < self._alive:
                        self._alive -= 1
                        return
                continue
            try:
                work()
            finally:
                del work  # what it holds goes now
                with self._lock:
                    self._pending -= 1


def serve(
    server: GrpcServer,
    listeners: Sequence[socket.socket],
    ready: Callable[[], None],
    *,
    grace: float = 5.0,
    ticks: Mapping[Callable[[], None], float] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is under way for `grace` seconds. For the main thread.

    `ready` is called when clients are served; each of `ticks` every so many seconds. The listeners stay the caller's.
    Raises UnavailableError.
    """
    events = Events()

    def accept(listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # it has gone again, or descriptors are short: the next one is tried later
        server.add(client)

    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            events.on_signal(number, events.stop)
        for listener in listeners:
            listener.setblocking(False)
            events.watch(listener.fileno(), lambda listener=listener: accept(listener))  # type: ignore[misc]  # binds the loop's value
        for tick, seconds in (ticks or {}).items():
            events.every(seconds, tick)
        ready()
        events.run()
    except OSError as e:
        raise UnavailableError(f"cannot serve: {e.strerror}") from None
    finally:
        server.close(grace)
        events.close()
