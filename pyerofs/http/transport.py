"""HTTP exchanges over libcurl: one request, one answer, nothing followed, nothing retried.

Threads: a Transport is shared by any number of threads. Each exchange takes one easy handle, and with it that handle's
warm connections, out of a pool; handles are never used by two threads at a time and share nothing (CURLSH connection
sharing is not thread-safe). Last in, first out: the connection that was used last is the one most likely still open.

Processes: a handle must not be used on both sides of a fork. Call close() before, or build a new Transport after.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pycurl

from .. import __version__
from .answer import Response
from .curlerror import Limits, TransportError
from .exchange import Exchange
from .proxy import Choice, Proxy, choose
from .request import ByteCounter, Request, header_lines
from .tls import TLS, Authorities, find_authorities, merged

CONNECT_TIMEOUT = 10  # seconds for name, TCP and TLS together
STALL_SPEED = 1024  # bytes/s; slower than that ...
STALL_SECONDS = 15  # ... for that long is a dead transfer. It is also how long a server may think before it answers.
_BUFFER = 512 << 10  # bytes; measured: throughput no longer grows beyond it
_IDLE_MAX = 64  # handles
_USER_AGENT = f"pyerofs/{__version__}"
_SUPPRESS_CONNECT_HEADERS = 265  # CURLOPT_..., which pycurl has no name for


class Transport:
    """Makes exchanges; see the module's text for threads and processes. Owns its idle handles until close().

    `trace` gets one line for each exchange, without a secret; it is called on the thread that made the exchange.
    """

    def __init__(
        self,
        *,
        trace: Callable[[str], None] | None = None,
        authorities: Authorities | None = None,
        proxies: Choice | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        stall_speed: int = STALL_SPEED,
        stall_seconds: float = STALL_SECONDS,
        user_agent: str = _USER_AGENT,
    ) -> None:
        self.trace = trace
        self._authorities = authorities or find_authorities(os.environ)
        self._proxies = proxies or choose(None, os.environ)
        self._limits = Limits(connect_timeout, stall_speed, stall_seconds, self._authorities != (None, None))
        self._user_agent = user_agent
        self._idle: list[pycurl.Curl] = []  # append and pop of a list are atomic
        self._closed = False
        self.received = ByteCounter()  # bytes of the heads and bodies of all answers, also while they come

    def request(self, request: Request) -> Response:
        """Return the answer, whatever its status. Raises TransportError where there was none, or only a part of it.

        An exception of a callback ends the transfer and comes out of here unchanged.
        """
        proxy = request.proxy or self._proxies(request.url)
        limits = self._limits
        if request.connect_timeout:
            limits = limits._replace(connect_timeout=min(request.connect_timeout, limits.connect_timeout))
        if request.patience:
            limits = limits._replace(stall_seconds=max(request.patience, limits.stall_seconds))
        curl = self._take()
        exchange = Exchange(request, proxy, curl, limits, self.received.add)
        outcome = "failed"
        try:
            self._set_up(curl, exchange)
            exchange.perform()
            response = exchange.response()
            outcome = str(response.status)
            return response
        except TransportError as failed:
            outcome = str(failed)
            raise
        finally:
            if self.trace:
                self.trace(exchange.line(outcome))
            self._give_back(curl)

    def close(self) -> None:
        """Close the idle connections; exchanges under way close theirs as they end. May be called again."""
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

    def _set_up(self, curl: pycurl.Curl, exchange: Exchange) -> None:
        request, limits = exchange.request, exchange.limits
        set_ = curl.setopt
        set_(pycurl.URL, str(request.url))
        set_(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        set_(pycurl.NOSIGNAL, 1)
        set_(pycurl.NETRC, pycurl.NETRC_IGNORED)
        set_(pycurl.USERAGENT, self._user_agent)
        set_(pycurl.HTTPHEADER, header_lines(request))
        if request.body is not None:
            set_(pycurl.POSTFIELDS, request.body.reveal())
        if request.content is not None:
            set_(pycurl.UPLOAD, 1)
            set_(pycurl.INFILESIZE_LARGE, request.content.length)
            set_(pycurl.READFUNCTION, exchange.on_read)
            set_(pycurl.SEEKFUNCTION, exchange.on_seek)
            set_(pycurl.UPLOAD_BUFFERSIZE, _BUFFER)
        if request.method == "HEAD":
            set_(pycurl.NOBODY, 1)
        elif request.method:
            set_(pycurl.CUSTOMREQUEST, request.method)
        # One exchange at a time on each connection: HTTP/2 has nothing to give here, and costs 10 to 30 % more CPU.
        set_(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        set_(pycurl.BUFFERSIZE, _BUFFER)
        set_(pycurl.TCP_NODELAY, 1)
        set_(pycurl.TCP_KEEPALIVE, 1)
        set_(pycurl.CONNECTTIMEOUT_MS, max(1, int(limits.connect_timeout * 1000)))
        if request.timeout is not None:
            set_(pycurl.TIMEOUT_MS, max(1, int(request.timeout * 1000)))
        if request.fresh:
            set_(pycurl.FRESH_CONNECT, 1)
        self._set_up_proxy(curl, exchange.proxy)
        if request.url.scheme == "https":
            self._set_up_tls(curl, request.tls)
        set_(pycurl.HEADERFUNCTION, exchange.on_header)
        set_(pycurl.WRITEFUNCTION, exchange.on_body)
        set_(pycurl.NOPROGRESS, 0)
        set_(pycurl.XFERINFOFUNCTION, exchange.on_progress)
        set_(pycurl.PREREQFUNCTION, exchange.on_connected)

    def _set_up_proxy(self, curl: pycurl.Curl, proxy: Proxy | None) -> None:
        # Both are always set, or libcurl would look into the environment itself.
        curl.setopt(pycurl.NOPROXY, "")
        curl.setopt(pycurl.PROXY, proxy.url if proxy else "")
        if not proxy:
            return
        curl.setopt(_SUPPRESS_CONNECT_HEADERS, 1)  # its answer to CONNECT is not the registry's
        if proxy.username:
            curl.setopt(pycurl.PROXYUSERNAME, proxy.username.reveal())
            curl.setopt(pycurl.PROXYPASSWORD, proxy.password.reveal() if proxy.password else "")
        if proxy.scheme == "https":
            bundle, directory = self._authorities
            if bundle:
                curl.setopt(pycurl.PROXY_CAINFO, bundle)
            if directory:
                curl.setopt(pycurl.PROXY_CAPATH, directory)

    def _set_up_tls(self, curl: pycurl.Curl, tls: TLS) -> None:
        bundle, directory = self._authorities
        if tls.ca:
            curl.setopt(pycurl.CAINFO_BLOB, merged((bundle, *tls.ca) if bundle else tls.ca))
        elif bundle:
            curl.setopt(pycurl.CAINFO, bundle)
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
