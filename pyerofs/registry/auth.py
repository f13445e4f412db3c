"""Authorization for one repository at one registry: challenges, Basic, Bearer tokens and their renewal.

A challenge is read, never guessed (RFC 9110 section 11.6.1; distribution specification: token authentication, OAuth 2).
Credentials go to the registry itself and to the realm that it named, nowhere else; no exception holds any.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..errors import AuthError, PyerofsError, RegistryError, UsageError
from ..http.answer import REDIRECTS, Response, failure, iso_date, json_object, server_time
from ..http.curlerror import TransportError
from ..http.proxy import Proxy
from ..http.request import Request
from ..http.tls import DEFAULT_TLS, TLS
from ..http.transport import Transport
from ..http.url import Url, form, is_link_local, parse, peer_check
from ..retry import boottime
from ..secret import Secret
from .credentials import Credentials, Lookup
from .redirect import HOPS_MAX, next_hop

_TOKEN_CAP = 1 << 20  # bytes of a token server's answer
_TOKEN_TIMEOUT = 30.0  # seconds for one exchange with a token server
_DEFAULT_LIFETIME = 60.0  # seconds, where the token server says nothing
_MARGIN_MAX = 60.0  # seconds before its end at which a token is renewed at the latest
_CLIENT_ID = "pyerofs"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r"([A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|$)")
_PARAMETER = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([!#$%&'*+.^_`|~0-9A-Za-z:/-]+))"
)
_BLANKS = re.compile(r"[\s,]*")


class Challenge(NamedTuple):
    """`scheme` and the names of `parameters` are in lower case; of a repeated parameter the first one counts."""

    scheme: str
    parameters: dict[str, str]
    token68: str = ""


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """All challenges of the WWW-Authenticate fields `values`, RFC 9110 section 11.6.1. Never raises: skips nonsense."""
    return [challenge for value in values for challenge in _challenges(value)]


def _challenges(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while at < len(text):
        if (blanks := _BLANKS.match(text, at)) and blanks.end() > at:
            at = blanks.end()
        elif found and (parameter := _PARAMETER.match(text, at)):
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1].parameters.setdefault(name.lower(), value)
            at = parameter.end()
        elif scheme := _TOKEN.match(text, at):
            at = scheme.end()
            token68 = _TOKEN68.match(text, at + 1) if text[at : at + 1] == " " else None
            found.append(Challenge(scheme[0].lower(), {}, token68[1] if token68 else ""))
            at = token68.end() if token68 else at
        else:
            at += 1
    return found


class Authorization:
    """The value of an Authorization header, and when to think of the next one (seconds of the authorizer's clock)."""

    __slots__ = ("ends_at", "renew_at", "value")

    def __init__(self, value: str, renew_at: float = float("inf"), ends_at: float = float("inf")) -> None:
        self.value = Secret(value)
        self.renew_at = renew_at
        self.ends_at = ends_at

    @property
    def is_token(self) -> bool:
        return self.value.reveal().startswith("Bearer ")


class Authorizer:
    """Holds the authorization that all threads use for `repository` at `registry` (its URL, as it was reached).

    Threads: any number may call. One of them renews for all: ahead of the end the others go on with the old token,
    after it they wait; who waited for a renewal that failed gets that failure and does not try once more.
    `scopes`: what tokens must be good for beside what a challenge asks for.
    Owns nothing that has to be closed. `clock` counts seconds, also those of a suspended machine. Where `tls` verifies
    nothing (oci.insecure), the token server may be spoken to in plain http.
    """

    def __init__(
        self,
        transport: Transport,
        registry: Url,
        repository: str,
        look_up: Lookup,
        *,
        scopes: tuple[str, ...] = (),
        tls: TLS = DEFAULT_TLS,
        proxy: Proxy | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._transport = transport
        self._registry = registry
        self._repository = repository
        self._look_up = look_up
        self._scopes = scopes
        self._tls = tls
        self._proxy = proxy
        self._clock = clock
        self._lock = threading.Lock()  # held while renewing; guards the four below, which may be read without it
        self._current: Authorization | None = None
        self._challenge: Challenge | None = None
        self._attempts = 0
        self._failure: PyerofsError | None = None

    def current(self, cancel: Callable[[], bool] | None = None) -> Authorization | None:
        """Return what to send with a request; None before the first challenge.

        It may renew the token; once that has expired it raises as renew().
        """
        current = self._current
        if current is None or self._clock() < current.renew_at:
            return current
        if self._clock() >= current.ends_at:
            return self.renew([], current, cancel)
        if self._lock.acquire(blocking=False):
            try:
                if self._current is current:
                    self._attempt(cancel)
            except PyerofsError as error:
                # There is still time. Half of it goes by before the next try.
                now = self._clock()
                current.renew_at = now + (current.ends_at - now) / 2
                self._say(f"the token for {self._repository} was not renewed ahead of its end: {error}")
            finally:
                self._lock.release()
        return self._current

    def renew(
        self,
        challenges: Sequence[Challenge],
        used: Authorization | None,
        cancel: Callable[[], bool] | None = None,
    ) -> Authorization:
        """Another authorization than `used`, with which the registry refused a request and sent `challenges` (or none).

        AuthError: it cannot be had. RegistryError with `temporary`: the token server is having a bad time.
        UsageError: the credentials' file cannot be read.
        """
        attempts = self._attempts
        with self._lock:
            current = self._current
            if current is not None and current is not used and self._clock() < current.ends_at:
                return current
            if self._failure and self._attempts != attempts:
                raise _again(self._failure)
            self._challenge = self._choose(challenges)
            return self._attempt(cancel)

    def _attempt(self, cancel: Callable[[], bool] | None) -> Authorization:
        self._failure = None
        try:
            self._current = self._obtain(self._challenge, cancel)
            return self._current
        except PyerofsError as error:
            self._failure = error
            raise
        finally:
            self._attempts += 1

    def _choose(self, challenges: Sequence[Challenge]) -> Challenge:
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        chosen = by_scheme.get("bearer") or by_scheme.get("basic")
        if chosen:
            return chosen
        if by_scheme:
            schemes = ", ".join(sorted(by_scheme))
            raise AuthError(f"{self._host}: asks for {schemes} authentication; only Basic and Bearer are known")
        if self._challenge:  # a plain 403 for a token that is out of date
            return self._challenge
        raise AuthError(f"{self._host}: refuses access to {self._repository} and names no way to authenticate")

    def _obtain(self, challenge: Challenge | None, cancel: Callable[[], bool] | None) -> Authorization:
        credentials = self._look_up()
        if credentials and credentials.registry_token:
            return self._fresh(f"Bearer {credentials.registry_token.reveal()}", credentials.source)
        if challenge and challenge.scheme == "bearer":
            return self._token(challenge, credentials, cancel)
        if not credentials or not credentials.password:
            raise AuthError(self._missing(credentials))
        return self._fresh(_basic(credentials), credentials.source)

    def _fresh(self, value: str, source: str) -> Authorization:
        if self._current and self._current.value == Secret(value):
            raise AuthError(f"{self._host}: refuses the credentials of {source} for {self._repository}")
        return Authorization(value)

    def _missing(self, credentials: Credentials | None) -> str:
        if credentials and credentials.helper:
            return (
                f"{self._host}: the credentials are kept by {credentials.helper} ({credentials.source}), which is not "
                "in PATH: install it, or give oci.username and oci.password_file"
            )
        return (
            f"{self._host}: {self._repository} needs a user name and a password: give oci.username and "
            f"oci.password_file, or run docker login {self._host}"
        )

    def _token(
        self, challenge: Challenge, credentials: Credentials | None, cancel: Callable[[], bool] | None
    ) -> Authorization:
        """One exchange with the token server: OAuth 2 POST of an identity token, else GET, with Basic or without."""
        realm = self._realm(challenge.parameters.get("realm", ""))
        asked = (challenge.parameters.get("scope") or f"repository:{self._repository}:pull").split()
        scopes = _united((*asked, *self._scopes)) if self._scopes else asked
        service = challenge.parameters.get("service")
        fields = [("service", service)] if service else []
        basic = body = None
        query = ""
        if credentials and credentials.identity_token:
            fields += [("scope", " ".join(scopes)), ("client_id", _CLIENT_ID), ("grant_type", "refresh_token")]
            body = Secret(form([*fields, ("refresh_token", credentials.identity_token.reveal())]))
        else:
            fields += [("scope", scope) for scope in scopes]
            if credentials and credentials.password:
                fields.append(("account", credentials.username))
                basic = Secret(_basic(credentials))
            query = f"{'&' if '?' in realm.target else '?'}{form(fields)}"
        request = Request(
            realm._replace(target=realm.target + query),
            authorization=basic,
            body=body,
            cap=_TOKEN_CAP,
            timeout=_TOKEN_TIMEOUT,
            cancel=cancel,
            note=f"token for {self._repository}",
            proxy=self._proxy,
        )
        response = self._follow(request, self._ask_realm(request))
        if response.status != 200:
            raise self._refusal(response, credentials)
        return self._accept(response)

    def _ask_realm(self, request: Request) -> Response:
        """By https, where the registry itself is reached so; an http realm by http only if `insecure` allows it."""
        realm = request.url
        if self._registry.scheme != "https" or realm.scheme == "https":
            return self._send(request)
        try:
            port = 443 if realm.port == 80 else realm.port
            return self._send(request._replace(url=realm._replace(scheme="https", port=port)))
        except TransportError as error:
            if error.answered or error.kind not in ("connect", "resolve", "tls"):
                raise
            if self._tls.verify:
                words = (
                    f"{self._host}: its token server http://{realm.shown} cannot be reached by https ({error}); "
                    "oci.insecure allows plain http"
                )
                raise RegistryError(words, temporary=True) if error.temporary else AuthError(words) from None
        return self._send(request)

    def _follow(self, request: Request, response: Response) -> Response:
        """Return the answer at the end of redirects.

        What is secret goes to the host it was meant for, and to no other.
        """
        for _ in range(HOPS_MAX):
            if response.status not in REDIRECTS:
                return response
            url = next_hop(response, self._registry)
            at = response.url
            same = url.same_origin(at) or (
                url.host == at.host and (at.port, url.port, url.scheme) == (80, 443, "https")
            )
            if request.body is not None and not (same and response.status != 303):
                raise AuthError(
                    f"{self._host}: its token server redirects to {url.shown}, which gets no identity token"
                )
            request = request._replace(url=url, authorization=request.authorization if same else None)
            response = self._send(request)
        if response.status in REDIRECTS:
            raise AuthError(f"{self._host}: its token server has more than {HOPS_MAX} redirects")
        return response

    def _send(self, request: Request) -> Response:
        url = request.url
        tls = self._tls if url.host == self._registry.host else self._tls.elsewhere()
        return self._transport.request(request._replace(tls=tls, admit=peer_check(url, self._registry)))

    def _realm(self, text: str) -> Url:
        try:
            realm = parse(text)
        except ValueError:
            raise AuthError(f"{self._host}: the challenge's realm is not a plain http or https URL") from None
        if is_link_local(realm.host) and realm.host != self._registry.host:
            raise AuthError(f"{self._host}: the challenge's realm {realm.shown} is a link-local or metadata address")
        return realm

    def _accept(self, response: Response) -> Authorization:
        answer = json_object(response.body)
        token = next((t for name in ("token", "access_token") if isinstance(t := answer.get(name), str) and t), None)
        if token is None:
            raise AuthError(f"{response.url.authority}: the token server's answer holds no token")
        stated = answer.get("expires_in")
        lifetime = float(stated) if isinstance(stated, (int, float)) and 0 < stated < 1e9 else _DEFAULT_LIFETIME
        issued, now = answer.get("issued_at"), server_time(response.headers)
        issued_at = iso_date(issued) if isinstance(issued, str) else None
        if issued_at is not None and now is not None and 0 < now - issued_at < lifetime:
            lifetime -= now - issued_at  # by the server's clock alone, so that ours need not be right
        start = self._clock()
        return Authorization(f"Bearer {token}", start + lifetime - min(lifetime / 4, _MARGIN_MAX), start + lifetime)

    def _refusal(self, response: Response, credentials: Credentials | None) -> RegistryError:
        error = failure(response, f"no token for {self._repository}", time.time())
        text = str(error)
        if credentials:  # a server may well repeat what it was sent
            for secret in (credentials.password, credentials.identity_token):
                text = text.replace(secret.reveal(), "***") if secret and secret.reveal() else text
        if error.temporary:
            return RegistryError(text, temporary=True, retry_after=error.retry_after)
        return AuthError(text)

    def _say(self, line: str) -> None:
        if self._transport.trace:
            self._transport.trace(f"{self._host}: {line}")

    @property
    def _host(self) -> str:
        return self._registry.authority


def _united(scopes: Iterable[str]) -> list[str]:
    """Merge the scopes so that each resource has one with all its actions: of two, servers may see only one."""
    actions: dict[str, dict[str, None]] = {}
    for scope in scopes:
        resource, _, names = scope.rpartition(":")
        actions.setdefault(resource, {}).update(dict.fromkeys(names.split(",")))
    return [f"{resource}:{','.join(names)}" for resource, names in actions.items()]


def _basic(credentials: Credentials) -> str:
    """Return the header's value, RFC 7617. Raises UsageError for a name that cannot be sent."""
    import binascii

    if ":" in credentials.username:
        raise UsageError(f"the user name in {credentials.source} has a colon, which Basic authentication cannot send")
    password = credentials.password.reveal() if credentials.password else ""
    return "Basic " + binascii.b2a_base64(f"{credentials.username}:{password}".encode(), newline=False).decode()


def _again(error: PyerofsError) -> PyerofsError:
    """Copy the failure of another thread's renewal for this one; an exception object belongs to one traceback."""
    if isinstance(error, RegistryError) and not isinstance(error, AuthError):
        return RegistryError(str(error), temporary=error.temporary, retry_after=error.retry_after)
    return type(error)(str(error))
