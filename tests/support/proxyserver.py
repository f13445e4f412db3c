"""An HTTP proxy on loopback that leads to one backend, whatever host it is asked for, and remembers what it was asked.

with ProxyServer(registry.host, user=("me", "pw")) as proxy:
    proxy.url, proxy.asked
"""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

_LIMIT = 20.0  # seconds


class Asked(NamedTuple):
    """One request to the proxy: the method, what stands behind it, and its header fields in lower case."""

    method: str
    target: str
    headers: dict[str, str]


class ProxyServer:
    """`backend` is host:port. `refuse`: answers every request with this status. `host` is the proxy's host:port."""

    def __init__(self, backend: str, user: tuple[str, str] | None = None) -> None:
        self.asked: list[Asked] = []
        self.refuse: int | None = None
        self._backend = ("127.0.0.1", int(backend.rpartition(":")[2]))
        self._user = user
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> ProxyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_LIMIT)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def admitted(self, header: str | None) -> bool:
        if self._user is None:
            return True
        return header == "Basic " + base64.b64encode(":".join(self._user).encode()).decode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def do_CONNECT(self) -> None:
                self._serve()

            def _serve(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                proxy.asked.append(Asked(self.command, self.path, headers))
                self.close_connection = True
                if not proxy.admitted(headers.get("proxy-authorization")):
                    self._refuse(407)
                elif proxy.refuse:
                    self._refuse(proxy.refuse)
                else:
                    self._lead()

            def _refuse(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.send_header("Connection", "close")
                if status == 407:
                    self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
                self.end_headers()

            def _lead(self) -> None:
                with socket.create_connection(proxy._backend, _LIMIT) as backend:
                    if self.command == "CONNECT":
                        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    else:
                        path = "/" + self.path.split("://", 1)[1].partition("/")[2]
                        lines = [f"{self.command} {path} HTTP/1.1", "Connection: close"]
                        lines += [f"{n}: {v}" for n, v in self.headers.items() if not n.lower().startswith("proxy-")]
                        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                        backend.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
                    there = threading.Thread(target=_pump, args=(self.connection, backend), daemon=True)
                    there.start()
                    _pump(backend, self.connection)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
