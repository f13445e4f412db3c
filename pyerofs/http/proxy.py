"""Through which proxy a URL is reached: what an option says, or the usual variables of the environment.

Chosen here and not by libcurl, so that its password is a Secret, and that the same rules hold wherever libcurl comes
from. http_proxy (in lower case only: a CGI's HTTP_PROXY is a stranger's header), https_proxy, all_proxy, no_proxy, each
also in upper case. Pure values; safe to share between threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..errors import UsageError
from ..secret import Secret
from .url import Url, is_loopback

_PROXY = re.compile(
    r"(?:(https?|socks4a?|socks5h?)://)?(?:([^@/?#\\\s]*)@)?(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?/?",
    re.ASCII | re.IGNORECASE,
)
_DEFAULT_PORT = {"http": 3128, "https": 443}  # what curl takes
_SOCKS_PORT = 1080


class Proxy(NamedTuple):
    """`authority` is host:port, `scheme` as libcurl has it; it may be shown, `username` and `password` are secrets."""

    scheme: str
    authority: str
    username: Secret | None = None
    password: Secret | None = None

    @property
    def url(self) -> str:
        """Without the credentials."""
        return f"{self.scheme}://{self.authority}"


Choice = Callable[[Url], Proxy | None]


def parse(text: str, where: str) -> Proxy:
    """Parse the proxy at `text`, a URL or host:port.

    Raises UsageError that names `where` it stands, and not its value.
    """
    found = _PROXY.fullmatch(text)
    if not found or (found[4] and not 0 < int(found[4]) < 65536):
        raise UsageError(f"{where} is not the URL of a proxy: write http://[USER:PASSWORD@]HOST:PORT")
    scheme = (found[1] or "http").lower()
    port = found[4] or str(_DEFAULT_PORT.get(scheme, _SOCKS_PORT))
    username: Secret | None = None
    password: Secret | None = None
    if found[2]:
        from urllib.parse import unquote  # few have one

        name, colon, word = found[2].partition(":")
        username, password = Secret(unquote(name)), Secret(unquote(word)) if colon else None
    return Proxy(scheme, f"{found[3].lower()}:{port}", username, password)


def choose(option: str | None, environ: Mapping[str, str]) -> Choice:
    """How to choose: `option` for every URL, else what `environ` says when it is asked. UsageError for the option.

    The environment's proxies are for the world outside: never for this machine itself.
    """
    if option:
        proxy = parse(option, "oci.proxy")
        return lambda url: proxy
    return lambda url: _from_environment(url, environ)


def _from_environment(url: Url, environ: Mapping[str, str]) -> Proxy | None:
    if is_loopback(url.host):
        return None
    names = ["http_proxy"] if url.scheme == "http" else ["https_proxy", "HTTPS_PROXY"]
    for name in (*names, "all_proxy", "ALL_PROXY"):
        if environ.get(name):
            excluded = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
            return None if is_excluded(url, excluded) else parse(environ[name], f"${name}")
    return None


def is_excluded(url: Url, no_proxy: str) -> bool:
    """Whether `no_proxy` names the host: "*", a domain (with all below it), an address, a network, each with a port."""
    host = url.host.strip("[]")
    return any(_covers(entry.strip().lower(), host, url.port) for entry in no_proxy.split(","))


def _covers(entry: str, host: str, port: int) -> bool:
    if entry in ("", "*"):
        return entry == "*"
    if "/" in entry:
        return _in_network(entry, host)
    name, colon, number = entry.rpartition(":")
    if colon and number.isascii() and number.isdigit() and (":" not in name or name.endswith("]")):
        if int(number) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").lstrip(".").rstrip(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _in_network(entry: str, host: str) -> bool:
    import ipaddress  # few have one

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
