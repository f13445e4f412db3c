"""What client and server share: gRPC's messages in HTTP/2's data, its headers, and the one import of h2.

github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from ..errors import UnavailableError
from .status import Code, RpcError

try:
    import h2.config
    import h2.connection
    import h2.errors
    import h2.events
    import h2.exceptions
    import h2.settings
except ImportError:
    raise UnavailableError("this needs the Python package h2: pip install 'pyerofs[containerd]'") from None

__all__ = [
    "CONTENT_TYPE", "PREFACE", "STREAMS", "FrameGuard", "Headers", "Messages", "connection", "frame", "h2",
    "read_timeout", "read_trailers", "show_timeout", "trailers",
]  # fmt: skip

CONTENT_TYPE = b"application/grpc"
STREAMS = 256  # at the same time
WINDOW = 1 << 20  # bytes that a client takes of a response at once
PREFACE = 24  # bytes before a client's first frame
_FRAME_HEAD, _FRAME_MAX = 9, 1 << 14  # bytes; the length is what both ends begin with
_PREFIX = 5  # bytes before each message: whether it is compressed, and its length
_MESSAGE_MAX = 1024  # bytes of an error's text
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

Headers = list[tuple[bytes, bytes]]


def connection(*, client: bool) -> h2.connection.H2Connection:
    """Return an end of a connection that is to begin: headers stay bytes, whichever the version of h2."""
    found = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding=False))
    codes = h2.settings.SettingCodes
    found.local_settings = h2.settings.Settings(
        client=client,
        initial_values={
            codes.ENABLE_PUSH: 0,
            codes.INITIAL_WINDOW_SIZE: WINDOW if client else (1 << 16) - 1,
            codes.MAX_CONCURRENT_STREAMS: STREAMS,
            codes.MAX_HEADER_LIST_SIZE: found.DEFAULT_MAX_HEADER_LIST_SIZE,
        },
    )
    found.initiate_connection()
    if client:
        found.increment_flow_control_window(WINDOW)
    return found


class FrameGuard:
    """Looks at the length of each frame that comes: h2 would keep all of a frame before it finds it too long.

    `skip`: bytes before the first one.
    """

    def __init__(self, skip: int = 0) -> None:
        self._left = skip  # bytes until the next frame
        self._head = b""

    def check(self, data: bytes) -> None:
        """Look at what comes next. Raises h2's ProtocolError."""
        at = 0
        while True:
            step = min(self._left, len(data) - at)
            self._left -= step
            at += step
            if at == len(data):
                return
            part = data[at : at + _FRAME_HEAD - len(self._head)]
            self._head += part
            at += len(part)
            if len(self._head) == _FRAME_HEAD:
                self._left = int.from_bytes(self._head[:3], "big")
                self._head = b""
                if self._left > _FRAME_MAX:
                    raise h2.exceptions.FrameTooLargeError(f"a frame of {self._left} bytes")


def frame(message: bytes) -> bytes:
    """Return the message with its prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Messages:
    """Cuts what comes of a stream's data into messages of at most `largest` bytes. For one thread at a time."""

    def __init__(self, largest: int) -> None:
        self._data = bytearray()
        self._largest = largest

    @property
    def held(self) -> int:
        """Bytes that are no whole message yet."""
        return len(self._data)

    def add(self, data: bytes) -> list[bytes]:
        """Return the messages that are now whole. Raises RpcError."""
        self._data += data
        found = []
        while len(self._data) >= _PREFIX:
            size = int.from_bytes(self._data[1:_PREFIX], "big")
            if self._data[0]:
                raise RpcError(Code.UNIMPLEMENTED, "compressed messages are not understood")
            if size > self._largest:
                raise RpcError(
                    Code.RESOURCE_EXHAUSTED, f"a message has {size} bytes; at most {self._largest} are taken"
                )
            if len(self._data) < _PREFIX + size:
                break
            found.append(bytes(self._data[_PREFIX : _PREFIX + size]))
            del self._data[: _PREFIX + size]
        return found


def trailers(code: Code, message: str = "") -> Headers:
    """Return the end of a response."""
    found = [(b"grpc-status", str(int(code)).encode())]
    if message:
        found.append((b"grpc-message", quote(message[:_MESSAGE_MAX], safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~").encode()))
    return found


def read_trailers(headers: dict[bytes, bytes]) -> RpcError | None:
    """Return the error that a response's end tells of; None for success."""
    text = headers.get(b"grpc-status", b"")
    if not text.isdigit():
        status = headers.get(b":status", b"").decode(errors="replace")
        about = f"the answer has no grpc-status{f' (HTTP {status})' if status not in ('', '200') else ''}"
        return RpcError(Code.UNAVAILABLE if status in ("429", "502", "503", "504") else Code.UNKNOWN, about)
    number = int(text[:9])
    code = Code(number) if number in Code._value2member_map_ else Code.UNKNOWN
    if code is Code.OK:
        return None
    message = unquote(headers.get(b"grpc-message", b"").decode(errors="replace"), errors="replace")
    return RpcError(code, message or code.name)


def read_timeout(text: bytes) -> float:
    """Return seconds. Raises ValueError for what is no grpc-timeout."""
    number, unit = text[:-1].decode("ascii", "replace"), text[-1:].decode("ascii", "replace")
    if not (0 < len(number) <= 8 and number.isascii() and number.isdecimal() and unit in _UNITS):
        raise ValueError("malformed grpc-timeout")
    return int(number) * _UNITS[unit]


def show_timeout(seconds: float) -> bytes:
    """Return a grpc-timeout."""
    return f"{max(1, min(round(seconds * 1000), 99999999))}m".encode()
