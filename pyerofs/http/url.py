"""A URL as this program takes it: absolute, http or https, nothing in it that a second parser could read differently.

libcurl parses what it is given once more. Whether Authorization may be sent is decided here, so both must see the same
host: anything unusual (userinfo, backslashes, blanks, control characters) is refused instead of interpreted.
Pure values, no I/O; safe to share between threads. RFC 3986, RFC 9110 section 4.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

_URL = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?([/?][^#\s\\]*)?(?:#.*)?", re.ASCII | re.IGNORECASE
)
_DEFAULT_PORT = {"http": 80, "https": 443}
_LOOPBACK = re.compile(r"localhost|127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}|\[::1\]")
# Cloud metadata services: link-local by address everywhere, by these names and a few other addresses at some.
_METADATA = {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
_METADATA |= {"100.100.100.200", "192.0.0.192", "fd00:ec2::254"}
_LINK_LOCAL = re.compile(r"(::ffff:)?169\.254\.|fe[89ab][0-9a-f]:", re.IGNORECASE)


class Url(NamedTuple):
    """`host` is in lower case, IPv6 in brackets; `target` is path and query, and begins with "/"."""

    scheme: str
    host: str
    port: int
    target: str = "/"

    @property
    def authority(self) -> str:
        """host or host:port, the port only where it is not the scheme's own."""
        return self.host if self.port == _DEFAULT_PORT[self.scheme] else f"{self.host}:{self.port}"

    @property
    def shown(self) -> str:
        """What may be printed: host and path. The query of a presigned URL is a credential."""
        return self.authority + self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    def same_origin(self, other: Url) -> bool:
        return self[:3] == other[:3]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse(text: str) -> Url:
    """Parse a URL. Raises ValueError, without the text in it, for anything but a plain absolute http(s) URL."""
    found = _URL.fullmatch(_ascii(text))
    if not found:
        raise ValueError("not a plain http or https URL")
    scheme, host, port, target = found.groups()
    scheme = scheme.lower()
    number = int(port) if port else _DEFAULT_PORT[scheme]
    if not 0 < number < 65536:
        raise ValueError("not a port number")
    target = target or "/"
    return Url(scheme, host.lower(), number, target if target[0] == "/" else "/" + target)


def join(base: Url, location: str) -> Url:
    """Return the URL that a Location header in an answer from `base` names (RFC 9110, section 10.2.2).

    Blanks in it are escaped, as curl and browsers do: file names of some storages come as they are. Raises as parse().
    """
    location = location.strip(" ").replace(" ", "%20")
    if location.startswith("//"):
        return parse(f"{base.scheme}:{location}")
    if location.startswith("/"):
        return parse(f"{base.scheme}://{base.authority}{location}")
    if "://" in location.partition("?")[0]:
        return parse(location)
    from urllib.parse import urljoin  # relative to a path: hardly any registry does that

    return parse(urljoin(str(base), location))


def is_loopback(host: str) -> bool:
    return _LOOPBACK.fullmatch(host) is not None


def is_link_local(host: str) -> bool:
    """Whether a host name or an IP address in any spelling is link-local or a cloud's metadata service."""
    host = host.strip("[]").rstrip(".").lower()
    if host in _METADATA or _LINK_LOCAL.match(host):
        return True
    if ":" in host:
        import ipaddress

        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return (address.ipv4_mapped or address).is_link_local
    if not host[:1].isdigit():
        return False
    import socket  # inet_aton reads what the resolver would: 2852039166, 0xa9fea9fe, 169.254.43518

    try:
        return socket.inet_ntoa(socket.inet_aton(host)).startswith("169.254.")
    except (OSError, ValueError):
        return False


def peer_check(url: Url, registry: Url) -> Callable[[str], bool] | None:
    """Decides by its IP address whether a host that `registry` sent us to may be spoken to; None: it is its own host.

    The name was checked before, but its owner can let it point at a metadata service.
    """
    return None if url.host == registry.host else lambda peer: not is_link_local(peer)


def form(fields: Iterable[tuple[str, str]]) -> str:
    """Encode the fields as a query or as an application/x-www-form-urlencoded body, every reserved character escaped.

    Ncode the fields as a query or as an application/x-www-form-urlencoded body, every reserved character escaped.
    """
    return "&".join(f"{_escape(name)}={_escape(value)}" for name, value in fields)


def _escape(text: str) -> str:
    # urllib.parse.quote does the same, but loading it takes every start several milliseconds.
    return "".join(chr(b) if (b < 128 and chr(b).isalnum()) or b in b"-._~" else f"%{b:02X}" for b in text.encode())


def _ascii(text: str) -> str:
    """Bytes beyond ASCII percent-encoded, as browsers and curl do; `text` holds one byte per character."""
    return text if text.isascii() else "".join(c if c < "\x80" else f"%{ord(c):02X}" for c in text)
