"""The tags of a repository (OCI distribution specification, "Listing Tags")."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from ..errors import RegistryError
from ..http.answer import failure, json_object
from ..http.request import Request
from .mirror import ask_each

if TYPE_CHECKING:
    from ..http.answer import Response
    from ..http.url import Url
    from .client import Registry
    from .endpoint import Endpoint
    from .mirror import Mirror

_PAGE = 1000  # tags
_PAGES_MAX = 1000
_CAP = 4 << 20  # bytes of a page
_TIMEOUT = 60.0  # seconds for a page
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')


def list_tags(registry: Registry) -> list[str]:
    """Return all tags of the repository, in the registry's order. Raises RegistryError (NotFoundError, AuthError)."""
    found: list[str] = []
    last = ""
    for _ in range(_PAGES_MAX):
        response = ask_each(registry.capable("resolve"), partial(_page, registry, last))
        tags = json_object(response.body).get("tags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise RegistryError(f"{registry.host}: tags of {registry.repository}: the answer is no list of tags")
        found += tags
        following = _NEXT.search(response.headers.combined("link") or "")
        # Of the link only its mark is taken: where to ask is known.
        after = parse_qs(urlsplit(following[1]).query).get("last", [""])[0] if following else ""
        if not after or after == last:
            return found
        last = after
    return found


def _page(registry: Registry, last: str, mirror: Mirror) -> Response:
    def url(endpoint: Endpoint) -> Url:
        plain = endpoint.url("tags/list")
        query = f"n={_PAGE}" + (f"&last={quote(last, safe='')}" if last else "")
        return plain._replace(target=f"{plain.target}{'&' if '?' in plain.target else '?'}{query}")

    def exchange(endpoint: Endpoint) -> Response:
        return endpoint.send(Request(url(endpoint), cap=_CAP, timeout=_TIMEOUT, note=mirror.note))

    _, response = mirror.ask(exchange)
    if response.status != 200:
        raise failure(response, f"tags of {registry.repository}", time.time())
    if response.truncated:
        raise RegistryError(f"{mirror.name}: tags of {registry.repository}: the answer is larger than {_CAP >> 20} MiB")
    return response
