"""A gRPC client on a Unix socket."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping

from ..errors import UnavailableError
from .framing import CONTENT_TYPE, Messages, connection, frame, h2, read_trailers, show_timeout
from .status import Code, RpcError

_RECEIVE = 1 << 16
_LARGEST = 16 << 20  # bytes of a message


class GrpcClient:
    """Owns a connection until close(). For one thread, one call at a time.

    `metadata`: of every call. After a call that has failed for the connection's sake the next one makes a new one.
    """

    def __init__(self, path: str, metadata: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._metadata = {**(metadata or {})}
        self._socket: socket.socket | None = None
        self._h2: h2.connection.H2Connection

    def call(self, method: str, request: bytes, timeout: float = 30.0) -> bytes:
        """Return the response, within so many seconds. Raises RpcError, UnavailableError."""
        with contextlib.closing(self.open(method, timeout)) as stream:
            stream.send(request)
            stream.finish()
            found = list(stream)
        if len(found) != 1:
            raise RpcError(Code.INTERNAL, f"{method} gave {len(found)} messages for one")
        return found[0]

    def stream(self, method: str, request: bytes, timeout: float = 30.0) -> Iterator[bytes]:
        """Yield the responses, all of them within so many seconds. Raises RpcError, UnavailableError."""
        with contextlib.closing(self.open(method, timeout)) as stream:
            stream.send(request)
            stream.finish()
            yield from stream

    def open(self, method: str, timeout: float = 30.0) -> ClientStream:
        """Begin a call, whose requests and responses may come in any order. Raises UnavailableError."""
        self._connect()
        number = self._h2.get_next_available_stream_id()
        self._h2.send_headers(
            number,
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", method.encode()),
                (b":authority", b"localhost"),
                (b"te", b"trailers"),
                (b"content-type", CONTENT_TYPE),
                (b"grpc-timeout", show_timeout(timeout)),
                *((name.encode(), value.encode()) for name, value in self._metadata.items()),
            ],
        )
        return ClientStream(self, number, timeout)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        if self._socket is not None:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(10.0)
            sock.connect(self._path)
        except OSError as e:
            sock.close()
            raise UnavailableError(f"cannot connect to {self._path}: {e.strerror or e}") from None
        self._socket = sock
        self._h2 = connection(client=True)


class ClientStream:
    """A call under way. Iterating gives its responses, and raises RpcError unless it ends well."""

    def __init__(self, client: GrpcClient, number: int, timeout: float) -> None:
        self._client = client
        self._number = number
        self._deadline = time.monotonic() + timeout
        self._messages = Messages(_LARGEST)
        self._ready: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._ended = False
        self._error: RpcError | None = None

    @property
    def _h2(self) -> h2.connection.H2Connection:
        return self._client._h2

    def send(self, message: bytes) -> None:
        """Send a request. Raises RpcError."""
        view = memoryview(frame(message))
        while view and not self._ended:
            room = min(self._h2.local_flow_control_window(self._number), self._h2.max_outbound_frame_size)
            if room > 0:
                self._h2.send_data(self._number, bytes(view[:room]))
                view = view[room:]
                self._flush()
            else:
                self._receive()

    def finish(self) -> None:
        """Say that there are no more requests. Raises RpcError."""
        if not self._ended:
            self._h2.end_stream(self._number)
            self._flush()

    def __iter__(self) -> Iterator[bytes]:
        while (message := self.receive()) is not None:
            yield message

    def receive(self) -> bytes | None:
        """Return the next response; None: there is no other. Raises RpcError."""
        while not self._ready and not self._ended:
            self._receive()
        if self._ready:
            return self._ready.pop(0)
        if self._error:
            raise self._error
        return None

    def close(self) -> None:
        """Take no more of it."""
        if not self._ended and self._client._socket is not None:
            with contextlib.suppress(h2.exceptions.ProtocolError, RpcError):
                self._h2.reset_stream(self._number, h2.errors.ErrorCodes.CANCEL)
                self._flush()
        self._ended = True

    def _lost(self, why: str, code: Code = Code.UNAVAILABLE) -> RpcError:
        self._client.close()
        self._ended = True
        return RpcError(code, f"{self._client._path}: {why}")

    def _socket(self) -> socket.socket:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._lost("no answer in time", Code.DEADLINE_EXCEEDED)
        if self._client._socket is None:
            raise self._lost("the connection is closed")
        self._client._socket.settimeout(left)
        return self._client._socket

    def _flush(self) -> None:
        try:
            self._socket().sendall(self._h2.data_to_send())
        except TimeoutError:
            raise self._lost("nothing is read there", Code.DEADLINE_EXCEEDED) from None
        except OSError as e:
            raise self._lost(f"the connection broke off: {e.strerror}") from None

    def _receive(self) -> None:
        try:
            data = self._socket().recv(_RECEIVE)
        except TimeoutError:
            raise self._lost("no answer in time", Code.DEADLINE_EXCEEDED) from None
        except OSError as e:
            raise self._lost(f"the connection broke off: {e.strerror}") from None
        if not data:
            raise self._lost("the connection was closed")
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except h2.exceptions.ProtocolError as e:
            raise self._lost(f"what came is no HTTP/2: {type(e).__name__}") from None
        if not self._ended or self._client._socket is not None:
            self._flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if isinstance(event, h2.events.ConnectionTerminated):
            raise self._lost("the server closes the connection")
        if getattr(event, "stream_id", None) != self._number:
            return  # what is left of an earlier call
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            self._headers.update(dict(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self._ready += self._messages.add(event.data)
        elif isinstance(event, h2.events.StreamEnded):
            self._error = read_trailers(self._headers)
            self._ended = True
        elif isinstance(event, h2.events.StreamReset) and not self._ended:
            self._error = RpcError(Code.UNAVAILABLE, "the server broke off the call")
            self._ended = True
