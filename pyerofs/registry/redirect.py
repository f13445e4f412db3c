"""Where a redirect may lead, from each of its senders: a registry, a host that it redirected to, or its token server.

RFC 9110 section 15.4. Pure values, no I/O.
"""

from __future__ import annotations

from ..errors import RegistryError
from ..http.answer import Response
from ..http.url import Url, is_link_local, join

HOPS_MAX = 5  # redirects from one request


def next_hop(response: Response, registry: Url) -> Url:
    """Where a redirect from `registry` leads. RegistryError where it must not be followed; RFC 9110 section 15.4."""
    where = response.url.authority
    location = response.headers.get("location")
    if not location:
        raise RegistryError(f"{where}: redirects without saying where to")
    try:
        url = join(response.url, location)
    except ValueError:
        raise RegistryError(f"{where}: redirects to something that is not a plain http or https URL") from None
    if response.url.scheme == "https" and url.scheme != "https":
        raise RegistryError(f"{where}: redirects from https to http ({url.shown})")
    if is_link_local(url.host) and url.host != registry.host:
        raise RegistryError(f"{where}: redirects to a link-local or metadata address ({url.shown})")
    return url
