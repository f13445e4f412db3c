"""The origins of a registry: their URLs, where they may send us, and exchanges with the authorization they want.

OCI distribution specification; RFC 9110 section 15.4. For any number of threads; owns nothing that has to be closed.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import AuthError, UsageError
from ..http.answer import Response, error_code
from ..http.proxy import Proxy
from ..http.request import Request
from ..http.tls import DEFAULT_TLS, TLS
from ..http.transport import Transport
from ..http.url import Url, form, is_loopback, parse, peer_check
from ..secret import Secret
from .auth import Authorizer, parse_challenges
from .credentials import Lookup

# Of a 400: it would be the same with any other authorization, and a blob need not be sent once more for it.
_ABOUT_WHAT_WAS_SENT = frozenset(
    (
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "NAME_INVALID",
        "RANGE_INVALID",
        "SIZE_INVALID",
        "TAG_INVALID",
    )
)


class Origin(NamedTuple):
    """Where a registry's API is: `url`'s path is its prefix, "/v2". `headers` go with every request to this origin.

    `proxy`: for all that begins here, instead of what the transport would choose. `connect_timeout`: seconds.
    `namespace`: the registry of which this is a mirror, "" for the registry itself.
    """

    url: Url
    tls: TLS = DEFAULT_TLS
    headers: tuple[tuple[str, Secret], ...] = ()
    proxy: Proxy | None = None
    connect_timeout: float | None = None
    namespace: str = ""


def origins(host: str, insecure: bool, tls: TLS = DEFAULT_TLS) -> list[Origin]:
    """Return the origins to try for host[:port], in order.

    https only; `insecure`: without verification, and plain http where https is not spoken. A loopback host needs no
    TLS: plain http comes first there, unless the port is 443. Raises UsageError for what is no host.
    """
    try:
        secure = Origin(parse(f"https://{host}/v2"), tls._replace(verify=tls.verify and not insecure))
        plain = Origin(parse(f"http://{host}/v2"), secure.tls)
    except ValueError:
        raise UsageError(f"{host!r} is not a registry's host") from None
    if is_loopback(plain.url.host) and plain.url.port != 443:
        return [plain, secure]
    return [secure, plain] if insecure else [secure]


class Endpoint:
    """One origin, with the authorization for one repository there."""

    def __init__(
        self, origin: Origin, repository: str, transport: Transport, look_up: Lookup, scopes: tuple[str, ...] = ()
    ) -> None:
        self.origin = origin
        self._repository = repository
        self._transport = transport
        self._authorizer = Authorizer(
            transport, origin.url, repository, look_up, scopes=scopes, tls=origin.tls, proxy=origin.proxy
        )

    def url(self, path: str) -> Url:
        """Return the URL of manifests/REFERENCE or blobs/DIGEST of the repository; `ns` tells a mirror whose."""
        root, namespace = self.origin.url.target.rstrip("/"), self.origin.namespace
        query = f"?{form([('ns', namespace)])}" if namespace else ""
        return self.origin.url._replace(target=f"{root}/{self._repository}/{path}{query}")

    def send(self, request: Request, *, renew: bool = True) -> Response:
        """One exchange with this origin, or with a host that it redirected to: that one gets no Authorization.

        A 401 or 403 of this origin is answered, once and unless `renew` is False, by another authorization; so is a 400
        to a token, by which public.ecr.aws means that it has run out. Raises as Transport.request() and
        Authorizer.renew(); any other refusal is the caller's to judge.
        """
        origin = self.origin
        request = request._replace(proxy=origin.proxy, connect_timeout=origin.connect_timeout)
        if not request.url.same_origin(origin.url):
            tls = origin.tls if request.url.host == origin.url.host else origin.tls.elsewhere()
            return self._transport.request(request._replace(tls=tls, admit=peer_check(request.url, origin.url)))
        request = request._replace(tls=origin.tls, hidden=origin.headers)
        used = self._authorizer.current(request.cancel)
        response = self._transport.request(request._replace(authorization=used.value if used else None))
        refused = response.status in (401, 403) or (
            response.status == 400
            and used is not None
            and used.is_token
            and error_code(response) not in _ABOUT_WHAT_WAS_SENT
        )
        if not refused or not renew:
            return response
        challenges = parse_challenges(response.headers.all("www-authenticate"))
        if not challenges and not used:
            return response
        try:
            fresh = self._authorizer.renew(challenges, used, request.cancel)
        except AuthError:
            if response.status == 400:  # which may have meant something else after all
                return response
            raise
        note = f"after {response.status}, with another authorization"
        return self._transport.request(request._replace(authorization=fresh.value, note=note))
