"""`serve`: an export for NBD clients on a Unix or TCP socket, until a signal ends it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..events import Events
from ..listening import bind_unix
from .admission import Admission
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Export

DRAIN_TIMEOUT = 30.0  # seconds for reads under way after SIGTERM
BACKLOG = 128
ACCEPT_PAUSE = 0.5  # seconds without accepting clients, where descriptors, threads or memory are short
SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


def listen(unix: str | None, tcp: str | None, name: str = "") -> tuple[socket.socket, str]:
    """Return a listening socket and the NBD URI of what it serves; the caller owns the socket and the path.

    `name`: of the argument, for the UsageError.
    """
    if unix is not None:
        return _listen_unix(unix, name or "--unix"), f"nbd+unix:///?socket={os.path.abspath(unix)}"
    host, colon, port = (tcp or "").rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{name or '--tcp'} {tcp}: it must be HOST:PORT")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as e:
        raise UsageError(f"{name or '--tcp'} {tcp}: {e.strerror}") from None
    shown = f"[{host}]" if ":" in host else host
    return listener, f"nbd://{shown}:{listener.getsockname()[1]}"


def _listen_unix(path: str, name: str) -> socket.socket:
    try:
        return bind_unix(path, BACKLOG)
    except OSError as e:
        reason = (
            "another server listens there, or it is not a socket"
            if e.errno == errno.EADDRINUSE
            else e.strerror or str(e)
        )
        raise UsageError(f"{name} {path}: {reason}") from None


def serve(export: Export, listener: socket.socket, log: Callable[[str], None], ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; then answer the reads under way and close everything, the export too.

    For the main thread. Raises UnavailableError.
    """
    server = Server(export, log)
    admission = Admission(server, log)
    events = Events()
    draining = False

    def accept() -> None:
        try:
            client, _ = listener.accept()
        except OSError as e:
            if e.errno in SHORTAGE:
                admission.say("", f"cannot accept a connection: {e.strerror}")
                wait()
            return  # else it has gone again
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not admission.admit(client):
            wait()

    def wait() -> None:
        """Accept no client for a moment: connected ones are served, and some of them will go."""
        events.unwatch(listener.fileno())
        events.after(ACCEPT_PAUSE, go_on)

    def go_on() -> None:
        if not draining:
            events.watch(listener.fileno(), accept)

    def ended() -> None:
        if server.acknowledge() == 0 and draining:
            events.stop()

    def end() -> None:
        nonlocal draining
        if draining or not server.clients():
            events.stop()  # the second signal does not wait
            return
        draining = True
        events.unwatch(listener.fileno())
        server.drain()
        events.every(DRAIN_TIMEOUT, events.stop)

    try:
        export.superblock()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            events.on_signal(number, end)
        events.watch(listener.fileno(), accept)
        events.watch(server.fileno(), ended)
        ready()
        events.run()
    finally:
        server.close()
        export.settle(DRAIN_TIMEOUT)  # a client that has read everything was promised a line if it was not right
        export.close()
        events.close()
