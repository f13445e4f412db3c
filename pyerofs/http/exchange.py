"""One HTTP exchange while libcurl makes it: what has come so far, and what it comes to.

transport.py makes it and sets up its handle; the two are the only importers of pycurl.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pycurl

from .answer import Headers, Response
from .curlerror import Failure, Limits, TransportError, translate
from .proxy import Proxy
from .request import NOTHING, Request, redacted

HEADERS_CAP = 64 << 10  # bytes of all header lines of one answer
_GATHER = 256 << 10  # bytes for the sink at once; libcurl gives 16 KiB, and each of the sink's calls has its price


class Exchange:
    """The state of one exchange and its callbacks, which libcurl calls on the thread that performs it.

    A callback must not raise into libcurl: what it raises is kept, the transfer aborted, and raised again outside.
    """

    def __init__(
        self, request: Request, proxy: Proxy | None, curl: pycurl.Curl, limits: Limits, count: Callable[[int], None]
    ) -> None:
        self._count = count
        self.request = request
        self.proxy = proxy
        self.limits = limits
        self._curl = curl
        self._mark: tuple[float, float] | None = None  # when how many bytes had come and gone
        self._sent = 0  # bytes of the content
        self._headers = Headers()
        self._status = 0
        self._header_bytes = 0
        self._head: Response | None = None
        self._into_sink = False
        self._held: list[bytes] = []  # for the sink, as long as more is there already
        self._held_bytes = 0
        self._body = bytearray()
        self._received = 0
        self._complete = False  # the whole head of the final answer has come
        self._stopped = self._truncated = self._cancelled = self._overlong = self._stalled = False
        self._refused_peer = ""
        self._raised: BaseException | None = None

    def perform(self) -> None:
        """Run the transfer. Raises TransportError."""
        try:
            self._curl.perform()
            failed = None
        except pycurl.error as error:
            failed = self.verdict(error)
        if not self._cancelled:
            self._hand_on()  # also what came before a failure is good
        if failed:
            raise failed

    def on_header(self, line: bytes) -> int | None:
        self._count(len(line))
        if self._head is not None:  # trailers, behind the body: not used
            return None
        self._header_bytes += len(line)
        if self._header_bytes > HEADERS_CAP:
            self._overlong = True
            return -1
        if line.startswith(b"HTTP/"):  # a new head: what came before was a 1xx or a proxy's
            self._headers = Headers()
            status = line.split(None, 2)[1:2]
            self._status = int(status[0]) if status and status[0].isdigit() else 0
        elif line.strip():
            self._headers.add_line(line)
        else:
            self._complete = self._status >= 200
        return None

    def on_body(self, piece: bytes) -> int | None:
        try:
            self._count(len(piece))
            if self._head is None:
                self._begin()
            if self._into_sink and self.request.sink:
                self._received += len(piece)
                self._held.append(piece)
                self._held_bytes += len(piece)
                return None if self._held_bytes < _GATHER or self._hand_on() else -1
            room = self.request.cap - len(self._body)
            self._body += piece[:room]
            if len(piece) <= room:
                return None
            self._truncated = True
        except BaseException as error:
            self._raised = error
        return -1

    def _hand_on(self) -> bool:
        """Give what is held to the sink; return False where it wants no more."""
        if self._held and self.request.sink:
            piece = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held.clear()
            self._held_bytes = 0
            self._stopped = not self.request.sink(piece)
        return not self._stopped

    def on_read(self, most: int) -> bytes | int:
        content = self.request.content or NOTHING
        try:
            piece = content.read(self._sent, min(most, content.length - self._sent))
        except BaseException as error:
            self._raised = error
            return pycurl.READFUNC_ABORT
        self._sent += len(piece)
        return piece

    def on_seek(self, *_: int) -> int:
        """Keep libcurl from sending it again: the server may have taken it, so the sender has to ask first."""
        return pycurl.SEEKFUNC_FAIL

    def on_progress(self, _total: float, received: float, _to_send: float, sent: float) -> int:
        """libcurl calls this about once a second, and whenever it has taken all that had arrived."""
        try:
            if not self._hand_on():
                return 1
            self._cancelled = bool(self.request.cancel and self.request.cancel())
            self._stalled = not self._cancelled and self._stalls(received + sent)
        except BaseException as error:
            self._raised = error
            return 1
        return int(self._cancelled or self._stalled)

    def _stalls(self, moved: float) -> bool:
        """Whether less came or went than must. libcurl's own limit averages over 5 s, and so ends 5 s too late."""
        if self._mark is None:  # connecting has a limit of its own
            return False
        now = time.monotonic()
        since, before = self._mark
        if moved - before >= self.limits.stall_speed * self.limits.stall_seconds:
            self._mark = now, moved
            return False
        return now - since >= self.limits.stall_seconds

    def on_connected(self, peer: str, *_: object) -> int:
        """Note that the request is about to be sent, over a new connection or an old one."""
        try:
            self._mark = time.monotonic(), 0
            if not self.request.admit or self.proxy or self.request.admit(peer):
                return pycurl.PREREQFUNC_OK
            self._refused_peer = peer
        except BaseException as error:
            self._raised = error
        return pycurl.PREREQFUNC_ABORT

    def _begin(self) -> None:
        self._head = Response(self.request.url, self._status, self._headers)
        self._into_sink = bool(self.request.sink and self.request.usable and self.request.usable(self._head))

    def response(self) -> Response:
        if not self._complete:  # libcurl lets a connection end within the head
            words = f"{self.request.url.authority}: the connection was closed in the middle of the answer's head"
            raise TransportError(words, "transfer", temporary=True, answered=self._status > 0)
        if self._head is None:  # an empty body: the head has still to be looked at
            self._begin()
        body = bytes(self._body)
        return Response(
            self.request.url,
            self._status,
            self._headers,
            redacted(self.request, body) if self._status >= 300 else body,
            self._truncated,
            self._stopped,
            self._received,
        )

    def verdict(self, error: pycurl.error) -> TransportError | None:
        """Return what a failed transfer means; None where our own callback had enough.

        Raises what a callback raised.
        """
        if self._raised:
            raise self._raised
        if self._stopped or self._truncated:
            return None
        host = self.request.url.authority
        if self._cancelled:
            return TransportError(f"{host}: the request was cancelled", "cancelled", temporary=False)
        if self._refused_peer:
            return TransportError(
                f"{host} is at {self._refused_peer}, an address that no registry may send us to",
                "refused",
                temporary=False,
            )
        if self._overlong:
            return TransportError(
                f"{host}: the answer has more than {HEADERS_CAP >> 10} KiB of headers", "protocol", temporary=True
            )
        if self._complete and self._status >= 300:
            # docker-registry states a wrong length for the text of its 416; the status says all that is needed.
            self._truncated = True
            return None
        if self._stalled:
            words = f"{host}: less than {self.limits.stall_speed} bytes/s for {self.limits.stall_seconds:g} s"
            return TransportError(words, "stall", temporary=True, answered=self._status > 0)
        code, text = int(error.args[0]), str(error.args[-1])
        sent = self._curl.getinfo(pycurl.PRETRANSFER_TIME) > 0
        failure = Failure(code, text, self._curl.getinfo(pycurl.OS_ERRNO), sent, self._status > 0, self._via)
        return translate(failure, self.request.url, self.limits)

    def line(self, outcome: str) -> str:
        """Return the exchange for a trace: no query, no credentials, no body."""
        request = self.request
        wanted = next((" " + value for name, value in request.headers if name == "Range"), "")
        received = self._received or len(self._body)
        sent = f"{self._sent} bytes sent, " if self._sent else ""
        method = request.method or ("GET" if request.body is None else "POST")
        via = f" via {self._via}" if self._via else ""
        note = f" ({request.note})" if request.note else ""
        return (
            f"{method} {request.url.scheme}://{request.url.shown}{wanted}{via} -> {outcome}, {sent}{received} bytes, "
            f"{_timing(self._curl)}{note}"
        )

    @property
    def _via(self) -> str:
        return self.proxy.authority if self.proxy else ""


def _timing(curl: pycurl.Curl) -> str:
    """When what had come, counted from the exchange's start, and over which connection."""

    def at(info: int) -> float:
        return float(curl.getinfo(info)) * 1000

    if not curl.getinfo(pycurl.NUM_CONNECTS):
        return f"first byte {at(pycurl.STARTTRANSFER_TIME):.1f} ms, end {at(pycurl.TOTAL_TIME):.1f} ms, same connection"
    tls = f"TLS {at(pycurl.APPCONNECT_TIME):.1f} ms, " if curl.getinfo(pycurl.APPCONNECT_TIME) else ""
    return (
        f"name {at(pycurl.NAMELOOKUP_TIME):.1f} ms, connected {at(pycurl.CONNECT_TIME):.1f} ms, {tls}"
        f"first byte {at(pycurl.STARTTRANSFER_TIME):.1f} ms, end {at(pycurl.TOTAL_TIME):.1f} ms, new connection"
    )
