"""A gRPC server of a test's own, and a client that speaks bare HTTP/2 to it, well or not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import h2.config
import h2.connection
import h2.events

from pyerofs.grpc.server import Call, GrpcServer, Method, listen

PATIENCE = 60.0


class GrpcStage:
    """Echo, Many (responses), Hang (until `release` is set) and Broken of the service t.T; `log` is what was said."""

    def __init__(self, directory: Path, *, clients: int = 64, more: Mapping[str, Method] | None = None) -> None:
        self.path = str(directory / "grpc.sock")
        self.log: list[str] = []
        self.release = threading.Event()
        self.calls: list[Call] = []
        self.entered = threading.Semaphore(0)
        methods = {
            "/t.T/Echo": Method(lambda request, _: request),
            "/t.T/Many": Method(stream=self._many),
            "/t.T/Hang": Method(self._hang),
            "/t.T/Broken": Method(self._broken),
            **(more or {}),
        }
        self.server = GrpcServer(methods, self.log.append, clients=clients)
        self._listener = listen(self.path)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.server.add(client)

    def _hang(self, request: bytes, call: Call) -> bytes:
        self.calls.append(call)
        self.entered.release()
        assert self.release.wait(PATIENCE)
        return request

    @staticmethod
    def _many(request: bytes, _: Call) -> Iterable[bytes]:
        for number in range(int(request)):
            yield b"%d" % number * 1000

    @staticmethod
    def _broken(request: bytes, _: Call) -> bytes:
        raise KeyError("secret\nof the server")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        self.server.close()


class RawClient:
    """HTTP/2 by hand."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=False))
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def begin(self, path: str, body: bytes | None = b"\0\0\0\0\1x", **headers: str) -> int:
        """Send a call's headers and, unless None, its only data; return the stream's number."""
        stream = self.h2.get_next_available_stream_id()
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "t"}
        fields |= {"content-type": "application/grpc", "te": "trailers"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.h2.send_headers(stream, [(name.encode(), value.encode()) for name, value in fields.items()])
        if body is not None:
            self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def events(self) -> list[h2.events.Event]:
        """Return what comes next; nothing: the connection has ended."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return []
        found = self.h2.receive_data(data) if data else []
        return found if found or not data else self.events()

    def wait_for(self, stream: int) -> dict[bytes, bytes]:
        """Return all headers of a response once it has ended."""
        headers: dict[bytes, bytes] = {}
        while True:
            events = self.events()
            assert events, "the connection has ended"
            for event in events:
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    headers.update(dict(event.headers))
                if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    return headers

    def close(self) -> None:
        self.socket.close()
