"""A client's connection to a server: a thread that reads it and waits for it, and whatever thread has a response.

Nothing here blocks on the socket but for poll(2): what it does not take at once is kept, up to a limit, and sent when
it does. A client that breaks the protocol, or that does not read, loses its connection and costs a line in the log.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from .call import Call, Method
from .framing import (
    CONTENT_TYPE,
    PREFACE,
    STREAMS,
    FrameGuard,
    Headers,
    Messages,
    connection,
    frame,
    h2,
    read_timeout,
    trailers,
)
from .status import Code, RpcError

_OUT_MAX = 1 << 20  # bytes that wait for the socket; after that responses wait for it
_OUT_LOST = 4 << 20  # and with so many, which only answers to the protocol can make, it is lost
_RECEIVE = 1 << 16
_SLOW = 30.0  # seconds for a client to take some more of a response
_GOAWAY_TYPE = 7


class _Incoming:
    """A request that is not whole yet."""

    def __init__(self, call: Call, method: Method, largest: int) -> None:
        self.call = call
        self.method = method
        self.parts = Messages(largest)
        self.message: bytes | None = None


class ServerConnection:
    """Owns its socket. `submit` runs what it is given on another thread, and says whether it will.

    run() is its whole life, for a thread of its own; drain() and close() are for any thread.
    """

    def __init__(
        self,
        sock: socket.socket,
        methods: Mapping[str, Method],
        submit: Callable[[Callable[[], None]], bool],
        log: Callable[[str], None],
        largest: int,
    ) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._methods = methods
        self._submit = submit
        self._log = log
        self._largest = largest
        self._h2 = connection(client=False)
        self._guard = FrameGuard(PREFACE)
        self._changed = threading.Condition()  # guards everything below
        self._incoming: dict[int, _Incoming] = {}
        self._calls: dict[int, Call] = {}  # from the headers on, until the response has been sent
        self._begun: set[int] = set()  # of those, the ones with a response under way
        self._running = 0  # handlers, also those nobody waits for
        self._out = bytearray()
        self._open = True
        self._last: int | None = None  # the last stream that is answered, once the client was told to go
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def run(self) -> None:
        """Serve until the client goes, or close()."""
        try:
            with self._changed:
                self._flush()
            self._loop()
        except h2.exceptions.ProtocolError as error:
            self._lose(f"a client broke the protocol of HTTP/2: {type(error).__name__}: {ascii(str(error))[1:-1]:.200}")
        except OSError:
            pass  # it has gone
        except Exception as error:  # whatever h2 does with what a stranger has sent
            self._lose(f"a client's frames could not be read: {type(error).__name__}: {ascii(str(error))[1:-1]:.200}")
        finally:
            self._end()

    def _lose(self, why: str) -> None:
        with self._changed, contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            self._flush()  # h2 has said why
        self._log(f"{why}; its connection is closed")

    def _end(self) -> None:
        with self._changed:
            self._open = False
            for call in self._calls.values():
                call.end()
            self._calls.clear()
            self._incoming.clear()
            self._changed.notify_all()
            self._socket.close()
            os.close(self._wake)
            self._wake = -1

    def drain(self) -> None:
        """Have the client send its next requests elsewhere; those under way are answered."""
        with self._changed:
            if self._open and self._last is None:
                self._last = self._h2.highest_inbound_stream_id
                # By hand: h2 would take the connection for closed.
                self._out += b"\0\0\x08" + bytes((_GOAWAY_TYPE, 0)) + bytes(4)
                self._out += self._last.to_bytes(4, "big") + bytes(4)
                with contextlib.suppress(OSError):
                    self._flush()

    def idle(self) -> bool:
        """Tell whether no request is under way."""
        with self._changed:
            return not (self._calls or self._running or self._out) or not self._open

    def close(self) -> None:
        """Have run() return."""
        with self._changed:
            self._open = False
            self._poke()

    def _poke(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _loop(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while True:
            with self._changed:
                if not self._open:
                    return
                wanted = select.POLLIN | (select.POLLOUT if self._out else 0)
                seconds = self._expire()
            poll.register(self._socket, wanted)
            for fd, found in poll.poll(None if seconds is None else seconds * 1000 + 1):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                elif found & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    if not self._receive():
                        return
                else:
                    with self._changed:
                        self._flush()

    def _expire(self) -> float | None:
        """Answer the calls whose time is up, and return the seconds until the next one's is."""
        left = None
        for stream, call in list(self._calls.items()):
            remaining = call.remaining()
            if remaining == 0:
                self._finish(stream, RpcError(Code.DEADLINE_EXCEEDED, "the call's time is up"))
            elif remaining is not None:
                left = remaining if left is None else min(left, remaining)
        return left

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._guard.check(data)
        with self._changed:
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.ConnectionTerminated):
                    return False
                self._take(event)
            self._flush()
            self._changed.notify_all()  # windows may be wider
        return True

    def _flush(self) -> None:
        """Send what the socket takes. Raises OSError."""
        self._out += self._h2.data_to_send()
        waited = bool(self._out)
        while self._out and self._socket.fileno() >= 0:
            try:
                del self._out[: self._socket.send(self._out)]
            except BlockingIOError:
                break
        if len(self._out) > _OUT_LOST:
            raise h2.exceptions.ProtocolError("it reads nothing of what it asks for")
        if self._out:
            self._poke()  # the loop is to wait for room
        elif waited:
            self._changed.notify_all()

    # Requests

    def _take(self, event: Any) -> None:
        """Take one of h2's events."""
        if isinstance(event, h2.events.RequestReceived):
            self._begin(event.stream_id, dict(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._add(event.stream_id, event.data)
        elif isinstance(event, h2.events.StreamReset):
            self._incoming.pop(event.stream_id, None)
            self._begun.discard(event.stream_id)
            if call := self._calls.pop(event.stream_id, None):
                call.end()
        if isinstance(event, h2.events.StreamEnded):
            self._start(event.stream_id)

    def _begin(self, stream: int, headers: dict[bytes, bytes]) -> None:
        if self._last is not None and stream > self._last:
            return  # the client knows that it was not looked at
        method = headers.get(b":path", b"").decode(errors="replace")
        metadata = {
            name.decode(errors="replace"): value.decode(errors="replace")
            for name, value in headers.items()
            if not name.startswith(b":")
        }
        seconds = None
        error = None
        try:
            if timeout := headers.get(b"grpc-timeout"):
                seconds = read_timeout(timeout)
        except ValueError as e:
            error = RpcError(Code.INTERNAL, str(e))
        call = self._calls[stream] = Call(method, metadata, seconds)
        if headers.get(b":method") != b"POST" or not headers.get(b"content-type", b"").startswith(CONTENT_TYPE):
            self._send_end(stream, [(b":status", b"415")])
        elif error is None and method not in self._methods:
            error = RpcError(Code.UNIMPLEMENTED, f"there is no method {method[:200]}")
        elif self._running >= STREAMS:  # of calls that the client has cancelled
            error = RpcError(Code.RESOURCE_EXHAUSTED, "too many calls at the same time")
        if error:
            self._finish(stream, error)
        elif stream in self._calls:
            self._incoming[stream] = _Incoming(call, self._methods[method], self._largest)

    def _add(self, stream: int, data: bytes) -> None:
        incoming = self._incoming.get(stream)
        if incoming is None:
            return
        try:
            found = incoming.parts.add(data)
            if len(found) + (incoming.message is not None) > 1:
                raise RpcError(Code.INTERNAL, "this method takes one message")
            if sum(each.parts.held for each in self._incoming.values()) > 4 * self._largest:
                raise RpcError(Code.RESOURCE_EXHAUSTED, "too many requests are under way")
        except RpcError as error:
            self._finish(stream, error)
            return
        if found:
            incoming.message = found[0]

    def _start(self, stream: int) -> None:
        incoming = self._incoming.pop(stream, None)
        if incoming is None:
            return
        message = incoming.message
        if message is None:
            self._finish(stream, RpcError(Code.INTERNAL, "the request has no message"))
            return
        self._running += 1
        if not self._submit(lambda: self._handle(stream, incoming.call, incoming.method, message)):
            self._running -= 1
            self._finish(stream, RpcError(Code.RESOURCE_EXHAUSTED, "too many calls at the same time"))

    # Responses

    def _handle(self, stream: int, call: Call, method: Method, message: bytes) -> None:
        """Have the handler do it, on another thread."""
        error: RpcError | None = None
        try:
            if call.cancelled():
                pass
            elif method.unary:
                response = frame(method.unary(message, call))
                with self._changed:
                    if not call.cancelled():
                        self._send_headers(stream)
                        self._send_data(stream, call, response)
            elif method.stream:
                with self._changed:
                    if not call.cancelled():
                        self._send_headers(stream)
                for each in method.stream(message, call):
                    with self._changed:
                        if not self._send_data(stream, call, frame(each)):
                            break
        except RpcError as e:
            error = e
        except OSError:
            self.close()  # of the socket: handlers raise RpcError
        except Exception as e:
            self._log(f"{call.method}: {type(e).__name__}: {e}")
            error = RpcError(Code.INTERNAL, f"internal error: {type(e).__name__}")
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
                try:
                    self._finish(stream, error, call)
                except (OSError, h2.exceptions.ProtocolError):
                    self._open = False
                    self._poke()

    def _send_headers(self, stream: int) -> None:
        self._h2.send_headers(stream, [(b":status", b"200"), (b"content-type", CONTENT_TYPE)])
        self._begun.add(stream)

    def _send_data(self, stream: int, call: Call, data: bytes) -> bool:
        """Send as the client's window allows, and tell whether all of it could be sent. Raises RpcError, OSError."""
        view = memoryview(data)
        until = time.monotonic() + _SLOW
        while view and self._open and not call.cancelled():
            room = 0
            if len(self._out) < _OUT_MAX:
                room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if room > 0:
                self._h2.send_data(stream, bytes(view[:room]))
                view = view[room:]
                until = time.monotonic() + _SLOW
                if view:
                    self._flush()
            elif not self._changed.wait(until - time.monotonic()):
                raise RpcError(Code.ABORTED, f"the client took nothing of the response for {_SLOW:.0f} s")
        return not view

    def _finish(self, stream: int, error: RpcError | None, call: Call | None = None) -> None:
        """End a call, if it has not ended yet."""
        if stream not in self._calls or (call is not None and self._calls[stream] is not call):
            return
        end: Headers = trailers(error.code, str(error)) if error else trailers(Code.OK)
        if stream not in self._begun:
            end = [(b":status", b"200"), (b"content-type", CONTENT_TYPE), *end]
        self._send_end(stream, end)
        self._flush()

    def _send_end(self, stream: int, headers: Headers) -> None:
        """End a response, and take no more of the request."""
        with contextlib.suppress(h2.exceptions.ProtocolError):  # of the stream: its reset is next among the events
            self._h2.send_headers(stream, headers, end_stream=True)
            if stream in self._incoming:
                self._h2.reset_stream(stream, h2.errors.ErrorCodes.NO_ERROR)
        self._incoming.pop(stream, None)
        self._begun.discard(stream)
        if call := self._calls.pop(stream, None):
            call.end()
