"""HTTP exchanges over libcurl: one request, one answer, nothing followed, nothing retried. The only importer of pycurl.

Threads: a Transport is shared by any number of threads. Each exchange takes one easy handle, and with it that handle's
warm connections, out of a pool; handles are never used by two threads at a time and share nothing (CURLSH connection
sharing is not thread-safe). Last in, first out: the connection that was used last is the one most likely still open.

Processes: a handle must not be used on both sides of a fork. Call close() before, or build a new Transport after.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import pycurl

from .answer import Headers, Response
from .curlerror import Failure, Limits, TransportError, translate
from .errors import RegistryError
from .secret import Secret
from .tls import DEFAULT_TLS, TLS, Authorities, find_authorities
from .url import Url, is_loopback

CONNECT_TIMEOUT = 10  # seconds for name, TCP and TLS together
STALL_SPEED = 1024  # bytes/s; slower than that ...
STALL_SECONDS = 15  # ... for that long is a dead transfer: libcurl averages over 5 s, so that it may take 5 s more.
# It is also how long a server may think before it answers.
BODY_CAP = 64 << 10  # bytes of a body that nobody streams, unless the request says otherwise
_HEADERS_CAP = 64 << 10  # bytes of all header lines of one answer
_BUFFER = 512 << 10  # bytes; measured: throughput no longer grows beyond it
_IDLE_MAX = 64  # handles
_USER_AGENT = "pyerofs"


class Request(NamedTuple):
    """One exchange to make.

    `authorization`: value of that header. `body`: makes it a POST of a form. `sink`: gets each piece of the answer's
    body, on the calling thread, and gives False to end the transfer. `usable`: looks at the head before that, and says
    whether the sink may see any byte; if not, and also without a sink, the body is collected, up to `cap` bytes.
    `timeout`: seconds for all of it; None: only a stall ends it. `cancel`: polled about once a second or more often.
    `admit`: gets the peer's IP address before a byte is sent to it. `note`: why this exchange, for the trace.
    """

    url: Url
    headers: tuple[tuple[str, str], ...] = ()
    authorization: Secret | None = None
    body: Secret | None = None
    tls: TLS = DEFAULT_TLS
    sink: Callable[[bytes], bool] | None = None
    usable: Callable[[Response], bool] | None = None
    cap: int = BODY_CAP
    timeout: float | None = None
    cancel: Callable[[], bool] | None = None
    admit: Callable[[str], bool] | None = None
    note: str = ""


class Transport:
    """Makes exchanges; see the module's text for threads and processes. Owns its idle handles until close().

    `trace` gets one line for each exchange, without a secret; it is called on the thread that made the exchange.
    """

    def __init__(
        self,
        *,
        trace: Callable[[str], None] | None = None,
        authorities: Authorities | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        stall_speed: int = STALL_SPEED,
        stall_seconds: int = STALL_SECONDS,
        user_agent: str = _USER_AGENT,
    ) -> None:
        self.trace = trace
        self._authorities = authorities or find_authorities(os.environ)
        self._limits = Limits(connect_timeout, stall_speed, stall_seconds, self._authorities != (None, None))
        self._user_agent = user_agent
        self._idle: list[pycurl.Curl] = []  # append and pop of a list are atomic
        self._closed = False

    def request(self, request: Request) -> Response:
        """The answer, whatever its status. TransportError when there was none or only a part of it.

        An exception of a callback ends the transfer and comes out of here unchanged.
        """
        curl = self._take()
        exchange = _Exchange(request)
        outcome = "failed"
        try:
            self._set_up(curl, exchange)
            try:
                curl.perform()
            except pycurl.error as error:
                failed = exchange.verdict(curl, error, self._limits)
                if failed:
                    raise failed from None
            response = exchange.response()
            outcome = str(response.status)
            return response
        except TransportError as failed:
            outcome = str(failed)
            raise
        finally:
            if self.trace:
                self.trace(exchange.line(curl, outcome))
            self._give_back(curl)

    def close(self) -> None:
        """Closes the idle connections; exchanges under way close theirs as they end. May be called again."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> pycurl.Curl:
        try:
            return self._idle.pop()
        except IndexError:
            return pycurl.Curl()

    def _give_back(self, curl: pycurl.Curl) -> None:
        if self._closed or len(self._idle) >= _IDLE_MAX:
            curl.close()
            return
        curl.reset()  # drops the callbacks, and with them the caller's buffers, but keeps the connections
        self._idle.append(curl)

    def _set_up(self, curl: pycurl.Curl, exchange: _Exchange) -> None:
        request = exchange.request
        set_ = curl.setopt
        set_(pycurl.URL, str(request.url))
        set_(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        set_(pycurl.NOSIGNAL, 1)
        set_(pycurl.NETRC, pycurl.NETRC_IGNORED)
        set_(pycurl.USERAGENT, self._user_agent)
        set_(pycurl.HTTPHEADER, _header_lines(request))
        if request.body is not None:
            set_(pycurl.POSTFIELDS, request.body.reveal())
        # One exchange at a time on each connection: HTTP/2 has nothing to give here, and costs 10 to 30 % more CPU.
        set_(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        set_(pycurl.BUFFERSIZE, _BUFFER)
        set_(pycurl.TCP_NODELAY, 1)
        set_(pycurl.TCP_KEEPALIVE, 1)
        set_(pycurl.CONNECTTIMEOUT_MS, int(self._limits.connect_timeout * 1000))
        set_(pycurl.LOW_SPEED_LIMIT, self._limits.stall_speed)
        set_(pycurl.LOW_SPEED_TIME, self._limits.stall_seconds)
        if request.timeout is not None:
            set_(pycurl.TIMEOUT_MS, max(1, int(request.timeout * 1000)))
        if is_loopback(request.url.host):
            set_(pycurl.PROXY, "")  # a proxy of the environment is for the world outside
        if request.url.scheme == "https":
            self._set_up_tls(curl, request.tls)
        set_(pycurl.HEADERFUNCTION, exchange.on_header)
        set_(pycurl.WRITEFUNCTION, exchange.on_body)
        if request.cancel:
            set_(pycurl.NOPROGRESS, 0)
            set_(pycurl.XFERINFOFUNCTION, exchange.on_progress)
        if request.admit:
            set_(pycurl.PREREQFUNCTION, exchange.on_connected)

    def _set_up_tls(self, curl: pycurl.Curl, tls: TLS) -> None:
        bundle, directory = self._authorities
        if tls.ca or bundle:
            curl.setopt(pycurl.CAINFO, tls.ca or bundle)
        elif directory:
            curl.unsetopt(pycurl.CAINFO)  # else libcurl insists on its built-in path
        if directory:
            curl.setopt(pycurl.CAPATH, directory)
        if not tls.verify:
            curl.setopt(pycurl.SSL_VERIFYPEER, 0)
            curl.setopt(pycurl.SSL_VERIFYHOST, 0)
        if tls.cert:
            curl.setopt(pycurl.SSLCERT, tls.cert)
            curl.setopt(pycurl.SSLKEY, tls.key or tls.cert)


def _header_lines(request: Request) -> list[str]:
    lines = [f"{name}: {value}" for name, value in request.headers]
    lines.append("Accept-Encoding: identity")
    if request.authorization:
        lines.append(f"Authorization: {request.authorization.reveal()}")
    for line in lines:
        if not (line.isascii() and line.isprintable()):  # a token with a line break in it would add header fields
            name = line.partition(":")[0]
            raise RegistryError(
                f"{request.url.authority}: the value for the header {name!r} has characters that no header can have"
            )
    return lines


class _Exchange:
    """The state of one exchange and its callbacks, which libcurl calls on the thread that performs it.

    A callback must not raise into libcurl: what it raises is kept, the transfer aborted, and raised again outside.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self._headers = Headers()
        self._status = 0
        self._header_bytes = 0
        self._head: Response | None = None
        self._into_sink = False
        self._body = bytearray()
        self._received = 0
        self._complete = False  # the whole head of the final answer has come
        self._stopped = self._truncated = self._cancelled = self._overlong = False
        self._refused_peer = ""
        self._raised: BaseException | None = None

    def on_header(self, line: bytes) -> int | None:
        if self._head is not None:  # trailers, behind the body: nobody asked for them
            return None
        self._header_bytes += len(line)
        if self._header_bytes > _HEADERS_CAP:
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
            if self._head is None:
                self._begin()
            if self._into_sink and self.request.sink:
                self._received += len(piece)
                if self.request.sink(piece):
                    return None
                self._stopped = True
                return -1
            room = self.request.cap - len(self._body)
            self._body += piece[:room]
            if len(piece) <= room:
                return None
            self._truncated = True
        except BaseException as error:
            self._raised = error
        return -1

    def on_progress(self, *_: float) -> int:
        try:
            self._cancelled = bool(self.request.cancel and self.request.cancel())
        except BaseException as error:
            self._raised = error
            return 1
        return int(self._cancelled)

    def on_connected(self, peer: str, *_: object) -> int:
        try:
            if self.request.admit and self.request.admit(peer):
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
        return Response(
            self.request.url,
            self._status,
            self._headers,
            bytes(self._body),
            self._truncated,
            self._stopped,
            self._received,
        )

    def verdict(self, curl: pycurl.Curl, error: pycurl.error, limits: Limits) -> TransportError | None:
        """What a failed transfer means; None where it is our own callback that had enough. Raises what one raised."""
        if self._raised:
            raise self._raised
        if self._stopped or self._truncated:
            return None
        host = self.request.url.authority
        if self._cancelled:
            return TransportError(f"{host}: the request was cancelled", "cancelled", temporary=False)
        if self._refused_peer:
            return TransportError(
                f"{host} is at {self._refused_peer}, which no registry may send us to", "refused", temporary=False
            )
        if self._overlong:
            return TransportError(
                f"{host}: the answer has more than {_HEADERS_CAP >> 10} KiB of headers", "protocol", temporary=True
            )
        if self._complete and self._status >= 300:
            # docker-registry states a wrong length for the text of its 416; the status says all that is needed.
            self._truncated = True
            return None
        code, text = int(error.args[0]), str(error.args[-1])
        sent = curl.getinfo(pycurl.PRETRANSFER_TIME) > 0
        failure = Failure(code, text, curl.getinfo(pycurl.OS_ERRNO), sent, self._status > 0)
        return translate(failure, self.request.url, limits)

    def line(self, curl: pycurl.Curl, outcome: str) -> str:
        """The exchange for a person: no query, no credentials, no body."""
        request = self.request
        wanted = next((" " + value for name, value in request.headers if name == "Range"), "")
        received = self._received or len(self._body)
        connection = "new connection" if curl.getinfo(pycurl.NUM_CONNECTS) else "same connection"
        method = "GET" if request.body is None else "POST"
        note = f" ({request.note})" if request.note else ""
        return (
            f"{method} {request.url.scheme}://{request.url.shown}{wanted} -> {outcome}, {received} bytes, "
            f"{curl.getinfo(pycurl.TOTAL_TIME) * 1000:.1f} ms, {connection}{note}"
        )
