"""What libcurl's failures mean: the one place where its codes become readable errors.

The codes are libcurl's stable ABI (libcurl-errors(3)); they are numbers here so that `transport` stays the only module
that loads pycurl. Pure functions.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ..errors import RegistryError
from .url import Url

_TEXT_MAX = 200  # characters of libcurl's own words
_CONNECT_REFUSED = re.compile(r"CONNECT tunnel failed, response ([0-9]{3})")


class TransportError(RegistryError):
    """No whole answer was had. `kind` says how far it came:

    resolve, connect, tls: no request was sent. transfer, stall, protocol: the answer broke off, stopped, is no HTTP.
    refused: we did not want to talk to that peer. cancelled: we were asked to stop. setup: it could not even be tried.
    `answered`: an answer in HTTP had begun.
    """

    def __init__(self, message: str, kind: str, *, temporary: bool, answered: bool = False) -> None:
        super().__init__(message, temporary=temporary)
        self.kind = kind
        self.answered = answered


class Limits(NamedTuple):
    """The limits that a transfer had.

    Connect timeout in seconds, slowest transfer in bytes/s and how many seconds it may be slower; whether any
    certificate authorities were found.
    """

    connect_timeout: float
    stall_speed: int
    stall_seconds: float
    has_authorities: bool


class Failure(NamedTuple):
    """What libcurl says of a failed transfer.

    CURLcode, its text, errno of the system call (or 0), whether the request had been sent, whether an answer had begun,
    and host:port of the proxy (or "").
    """

    code: int
    text: str
    errno: int
    sent: bool
    answered: bool
    proxy: str = ""


_NO_PROXY_NAME, _NO_HANDSHAKE = 5, 35
_PLAIN = ("wrong version number", "packet length too long", "record layer failure")
_PARTIAL_FILE, _TIMEDOUT, _BAD_AUTHORITIES, _UNTRUSTED = 18, 28, 77, 60
_ENDINGS = {
    # code: kind, temporary, words after "HOST: "
    1: ("protocol", True, "the answer is not HTTP"),  # UNSUPPORTED_PROTOCOL: HTTP/0.9, which is any garbage
    3: ("setup", False, "the URL is malformed"),  # URL_MALFORMAT
    5: ("resolve", True, "the proxy's name cannot be resolved"),  # COULDNT_RESOLVE_PROXY
    8: ("protocol", True, "the answer is not HTTP"),  # WEIRD_SERVER_REPLY
    35: ("tls", True, "the TLS handshake failed"),  # SSL_CONNECT_ERROR
    43: ("tls", False, "the client certificate's key cannot be used"),  # BAD_FUNCTION_ARGUMENT: said of nothing else
    52: ("transfer", True, "the connection was closed without an answer"),  # GOT_NOTHING
    58: ("tls", False, "the client certificate or its key cannot be used"),  # SSL_CERTPROBLEM
    59: ("tls", False, "no TLS cipher in common"),  # SSL_CIPHER
    61: ("protocol", True, "the answer's transfer encoding is unknown or broken"),  # BAD_CONTENT_ENCODING
    65: ("transfer", True, "the connection was lost while sending"),  # SEND_FAIL_REWIND
    97: ("connect", True, "the proxy did not connect it"),  # PROXY
    _PARTIAL_FILE: ("transfer", True, "the connection was closed in the middle of the answer"),
}


def translate(failure: Failure, url: Url, limits: Limits) -> TransportError:
    """One line that names the host and the cause in words; never a query, a header or a credential."""
    code, host = failure.code, url.authority
    peer = f"the proxy {failure.proxy}" if failure.proxy else _with_port(url)
    if refusal := _CONNECT_REFUSED.search(failure.text):
        return _refused_by_proxy(failure.proxy, host, int(refusal[1]))
    if code == 6:  # COULDNT_RESOLVE_HOST
        return TransportError(f"cannot resolve {url.host}", "resolve", temporary=True)
    if code == 7:  # COULDNT_CONNECT
        cause = os.strerror(failure.errno).lower() if failure.errno else _words(failure.text)
        words = f"connection to {peer} refused" if "refused" in cause else f"cannot connect to {peer}: {cause}"
        return TransportError(words, "connect", temporary=True)
    if code == _TIMEDOUT:
        return _timeout(failure, url, limits)
    if code == _UNTRUSTED:
        message = f"TLS certificate of {host} not trusted ({_words(failure.text)})"
        if not limits.has_authorities:
            message += "; this system has no CA certificates: install ca-certificates or set SSL_CERT_FILE"
        return TransportError(message, "tls", temporary=False)
    if code == _BAD_AUTHORITIES:
        return TransportError(
            f"{host}: the CA certificates cannot be read ({_words(failure.text)})", "tls", temporary=False
        )
    if code in _ENDINGS:
        kind, temporary, words = _ENDINGS[code]
        detail = f" ({_words(failure.text)})" if kind == "tls" else ""
        if code == _NO_HANDSHAKE and any(words in failure.text for words in _PLAIN):
            detail = ": it seems to speak plain HTTP, which -o oci.insecure allows"
        if code == _NO_PROXY_NAME and failure.proxy:
            words = f"the name of the proxy {failure.proxy} cannot be resolved"
        return TransportError(f"{host}: {words}{detail}", kind, temporary=temporary, answered=failure.answered)
    # An unexpected code must not end a mount that could live on: the caller's time bound ends the attempts.
    words = f"{host}: the connection was lost ({_words(failure.text)})"
    return TransportError(words, "transfer", temporary=True, answered=failure.answered)


def _timeout(failure: Failure, url: Url, limits: Limits) -> TransportError:
    if not failure.sent:
        through = f" through the proxy {failure.proxy}" if failure.proxy else ""
        words = f"no connection to {_with_port(url)}{through} within {limits.connect_timeout:g} s"
        return TransportError(words, "connect", temporary=True)
    return TransportError(
        f"{url.authority}: the answer took too long", "stall", temporary=True, answered=failure.answered
    )


def _refused_by_proxy(proxy: str, host: str, status: int) -> TransportError:
    """Return the error for the proxy's own answer to CONNECT."""
    if status == 407:
        words = f"the proxy {proxy} needs a user and a password, or other ones: give them in its URL"
        return TransportError(words, "connect", temporary=False)
    words = f"the proxy {proxy} does not connect to {host}: {status}"
    return TransportError(words, "connect", temporary=status in (408, 429) or status >= 500)


def _with_port(url: Url) -> str:
    return f"{url.host}:{url.port}"


def _words(text: str) -> str:
    """libcurl's own text on one line, without the part that says again what kind of error it is."""
    head, colon, tail = text.partition(": ")
    if colon and head.lower().startswith(("ssl", "tls")):
        text = tail
    text = text.removeprefix("SSL certificate OpenSSL verify result: ")
    return "".join(c if c.isprintable() else " " for c in text)[:_TEXT_MAX].strip() or "no reason given"
