"""A control socket that answers, as a daemon's main thread has it."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyerofs.daemon.control import ControlServer


@contextmanager
def answering(server: ControlServer) -> Iterator[None]:
    """Until the end of the with statement, which closes the server."""
    stop, stopped = socket.socketpair()

    def serve() -> None:
        poll = select.poll()
        poll.register(server.fileno(), select.POLLIN)
        poll.register(stopped.fileno(), select.POLLIN)
        while stopped.fileno() not in dict(poll.poll()):
            server.accept()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.send(b"x")
        thread.join()
        server.close()
        stop.close()
        stopped.close()
