"""HTTP/1.1 on a listening socket, until a signal ends it: a thread for each client, of whom there is a limit."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .events import Events

CLIENT_TIMEOUT = 10.0  # seconds for a client to send its request
CLIENTS = 256  # at the same time; others are turned away


class WebHandler(BaseHTTPRequestHandler):
    """Of one client. It logs nothing, and says nothing of the versions of what serves it."""

    timeout = CLIENT_TIMEOUT
    server_version = "pyerofs"
    sys_version = ""

    def send_body(self, status: int, kind: str, body: bytes) -> None:
        """Send a whole answer of this media type."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def address_string(self) -> str:
        return ""  # a Unix socket's client has none

    def log_message(self, *_: object) -> None:
        pass


class _WebServer(ThreadingHTTPServer):
    daemon_threads = True
    timeout = 0  # a client that has gone again is not waited for

    def __init__(self, handler: type[BaseHTTPRequestHandler], listener: socket.socket, clients: int) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._places = threading.BoundedSemaphore(clients)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, *_: object) -> None:
        pass  # the client has gone


def serve_http(
    listener: socket.socket,
    handler: type[BaseHTTPRequestHandler],
    ready: Callable[[], None],
    *,
    clients: int = CLIENTS,
) -> None:
    """Have `handler` answer on a listening socket, which stays the caller's, until a signal. For the main thread."""
    server = _WebServer(handler, listener, clients)
    listener.setblocking(False)
    events = Events()
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            events.on_signal(number, events.stop)
        events.watch(listener.fileno(), server.handle_request)
        ready()
        events.run()
    finally:
        events.close()
