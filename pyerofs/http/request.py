"""One exchange to make, as a value; what it sends by way of header fields, and what must not be seen of its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from ..errors import RegistryError
from ..secret import Secret
from .answer import Response
from .proxy import Proxy
from .tls import DEFAULT_TLS, TLS
from .url import Url

BODY_CAP = 64 << 10  # bytes of a body that is not streamed, unless the request says otherwise


class ByteCounter:
    """A number that any number of threads add to."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self.value += number


class Content(NamedTuple):
    """A body that is not loaded: `length` bytes, of which `read(offset, n)` gives up to n; it may be read again."""

    length: int
    read: Callable[[int, int], bytes]

    @classmethod
    def of(cls, data: bytes) -> Content:
        return cls(len(data), lambda offset, n: data[offset : offset + n])


NOTHING = Content(0, lambda offset, n: b"")


class Request(NamedTuple):
    """One exchange to make.

    `hidden`: more headers, which are never shown. `authorization`: value of that header. `body`: makes it a POST of a
    form. `method`: another one than GET and that POST; `content`: what is sent with it; not a secret. `sink`:
    gets each piece of the answer's body, on the calling thread, and gives False to end the transfer. `usable`: looks
    at the head before that, and says whether the sink may see any byte; if not, and also without a sink, the body is
    collected, up to `cap` bytes. `timeout`: seconds for all of it; None: only a stall ends it.
    `cancel`: polled about once a second or more often. `admit`: gets the peer's IP address before a byte is sent to it,
    unless a proxy is the peer. `note`: why this exchange, for the trace. `fresh`: over a new connection. `proxy`:
    instead of what the transport would choose. `connect_timeout`: seconds, where that is less than the transport's.
    `patience`: seconds without a byte after which it is given up, where that is more than the transport's.
    """

    url: Url
    headers: tuple[tuple[str, str], ...] = ()
    hidden: tuple[tuple[str, Secret], ...] = ()
    authorization: Secret | None = None
    body: Secret | None = None
    method: str = ""
    content: Content | None = None
    tls: TLS = DEFAULT_TLS
    sink: Callable[[bytes], bool] | None = None
    usable: Callable[[Response], bool] | None = None
    cap: int = BODY_CAP
    timeout: float | None = None
    cancel: Callable[[], bool] | None = None
    admit: Callable[[str], bool] | None = None
    note: str = ""
    fresh: bool = False
    proxy: Proxy | None = None
    connect_timeout: float | None = None
    patience: float | None = None


def header_lines(request: Request) -> list[str]:
    """RegistryError, without the value, for one that no header can have."""
    lines = [f"{name}: {value}" for name, value in request.headers]
    lines.append("Accept-Encoding: identity")
    if request.content is not None:
        lines.append("Expect:")  # libcurl would wait a second for a server that never says "go on"
    if request.authorization:
        lines.append(f"Authorization: {request.authorization.reveal()}")
    for name, secret in request.hidden:
        if not (request.authorization and name.lower() == "authorization"):
            lines.append(f"{name}: {secret.reveal()}")
    for line in lines:
        if not (line.isascii() and line.isprintable()):  # a token with a line break in it would add header fields
            name = line.partition(":")[0]
            raise RegistryError(
                f"{request.url.authority}: the value for the header {name!r} has characters that no header can have"
            )
    return lines


def redacted(request: Request, body: bytes) -> bytes:
    """Return the text of a refusal without the request's secrets: some servers repeat what they were sent."""
    for secret in (request.authorization, *(value for _, value in request.hidden)):
        text = secret.reveal().encode() if secret else b""
        for part in (text, text.partition(b" ")[2]):
            body = body.replace(part, b"***") if part else body
    return body
