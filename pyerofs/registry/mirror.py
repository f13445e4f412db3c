"""The places that answer for a registry, in the order in which they are asked; how each has been lately.

containerd, "Registry Configuration". Any number of threads; nothing has to be closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ..errors import NotFoundError, PyerofsError, RegistryError
from ..http.answer import Response
from ..http.curlerror import TransportError
from ..http.proxy import parse as parse_proxy
from ..http.tls import TLS
from ..http.transport import Transport
from .credentials import Lookup, lookup
from .endpoint import Endpoint, Origin, origins
from .hosts import Host, HostConfig

PENALTY_FIRST = 1.0  # seconds for which a mirror that failed is asked last; doubled at each failure
PENALTY_MAX = 60.0
HOLD_MAX = 60.0  # seconds for which a host is left alone at the most, whatever its Retry-After says
_REASON_MAX = 80  # characters

# After which failures, before any answer, the next scheme is tried. Leaving https needs the stronger sign.
_TRY_NEXT = {"http": {"connect", "tls", "transfer", "protocol"}, "https": {"connect", "tls"}}

Clock = Callable[[], float]
T = TypeVar("T")


class Health:
    """How a host has been lately. `clock` counts seconds."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.failures = 0  # in a row
        self.reason = ""  # of the last one
        self._unwell_until = 0.0
        self._hold_until = 0.0

    def unwell(self) -> float:
        """Seconds for which it is to be asked last; 0 when it is as good as any other."""
        return max(0.0, self._unwell_until - self._clock())

    def held(self) -> float:
        """Seconds for which it wants to be left alone."""
        return max(0.0, self._hold_until - self._clock())

    def claim(self) -> int:
        """Note that the mirror is about to be asked; return what failed() wants to know.

        After a failure one thread finds out for all whether the mirror is well again.
        """
        with self._lock:
            if self.failures and not self.unwell():
                self._unwell_until = self._clock() + self._penalty()
            return self.failures

    def good(self) -> None:
        if self.failures:
            with self._lock:
                self.failures, self.reason, self._unwell_until = 0, "", 0.0

    def failed(self, error: RegistryError, claimed: int) -> None:
        with self._lock:
            if claimed == self.failures:  # else it is another thread's side of a failure that has been counted
                self.failures += 1
                self.reason = str(error).rpartition(": ")[2][:_REASON_MAX]
                self._unwell_until = self._clock() + self._penalty()
            if error.retry_after:
                self._hold_until = self._clock() + min(error.retry_after, HOLD_MAX)

    def _penalty(self) -> float:
        return float(min(PENALTY_FIRST * 2 ** min(self.failures - 1, 16), PENALTY_MAX))


class Mirror:
    """One place that answers for one repository of a registry; also the registry itself, which is the last of them.

    `endpoints`: its schemes. One of them is settled on as soon as it has answered.
    """

    def __init__(self, endpoints: Sequence[Endpoint], capabilities: frozenset[str], health: Health | None = None):
        self.endpoints = endpoints
        self.capabilities = capabilities
        self.health = health or Health()
        self._settled = endpoints[0] if len(endpoints) == 1 else None

    @property
    def name(self) -> str:
        return self.endpoints[0].origin.url.authority

    @property
    def note(self) -> str:
        """Why it is asked once more, for the trace."""
        return f"try {self.health.failures + 1}, after: {self.health.reason}" if self.health.failures else ""

    def ask(self, exchange: Callable[[Endpoint], Response]) -> tuple[Endpoint, Response]:
        """Return the answer of the first endpoint that speaks HTTP, and that endpoint.

        Raises what `exchange` raises.
        """
        if self._settled:
            return self._settled, exchange(self._settled)
        errors: list[TransportError] = []
        refusal: tuple[Endpoint, Response] | None = None
        last = self.endpoints[-1]
        for endpoint in self.endpoints:
            try:
                response = exchange(endpoint)
            except TransportError as error:
                if error.answered or error.kind not in _TRY_NEXT[endpoint.origin.url.scheme]:
                    raise
                errors.append(error)
                continue
            if response.status == 400 and endpoint is not last and endpoint.origin.url.scheme == "http":
                refusal = endpoint, response  # what a TLS server says to plain http, or simply what it says
                continue
            self._settled = endpoint
            return endpoint, response
        if refusal and errors[-1].temporary:
            return refusal
        # A certificate that is not trusted says most; that nothing listens at one of the ports says least.
        untrusted = next((error for error in errors if not error.temporary), None)
        raise untrusted or min(errors, key=lambda error: error.kind == "connect")


def make_mirrors(
    host: str,
    namespace: str,
    repository: str,
    transport: Transport,
    config: HostConfig,
    *,
    insecure: bool,
    credentials: Lookup | None,
    environ: Mapping[str, str],
    scopes: tuple[str, ...] = (),
) -> list[Mirror]:
    """Return the mirrors of `config`, and last the registry at `host`, which images call `namespace`.

    Raises UsageError.

    `credentials` are the user's for that host: no other host gets them, but what the files have for its own name.
    `scopes`: what tokens for that host must be good for beside what it asks for.
    """

    def make(place: Host) -> Mirror:
        own = place.url is None or place.url.authority == host
        look_up = credentials if own else None
        name = host if place.url is None else place.url.authority
        look_up = look_up or (lambda: lookup(name, repository, environ))
        found = _origins(place, host, namespace, insecure and own)
        endpoints = [Endpoint(origin, repository, transport, look_up, scopes if own else ()) for origin in found]
        return Mirror(endpoints, place.capabilities)

    return [make(place) for place in (*config.mirrors, config.server)]


def _origins(place: Host, host: str, namespace: str, insecure: bool) -> list[Origin]:
    certificate, key = place.client[0] if place.client else (None, None)
    tls = TLS(place.ca, certificate, key or None, place.verify)
    if place.url is None:
        found = origins(host, insecure, tls)
    else:
        is_mirror = place.url.authority not in (host, namespace)
        tls = tls._replace(verify=tls.verify and not insecure)
        found = [Origin(place.url, tls, namespace=namespace if is_mirror else "")]
    proxy = parse_proxy(place.proxy.reveal(), "the proxy in hosts.toml") if place.proxy else None
    timeout = place.connect_timeout
    return [origin._replace(headers=place.headers, proxy=proxy, connect_timeout=timeout) for origin in found]


def ask_each(
    mirrors: Sequence[Mirror],
    attempt: Callable[[Mirror], T],
    *,
    avoid: Callable[[Mirror], bool] = lambda mirror: False,
    begun: Callable[[], bool] = lambda: False,
    last_word: bool = False,
) -> T:
    """Return the answer of the first mirror that has one.

    Mirrors that failed lately, and those to `avoid`, come last.

    A failure leads to the next one, unless the answer had `begun` to be used. Raises the RegistryError that says most:
    a temporary one, so that it is tried again; the registry's own before a mirror's; any other before "not found". With
    `last_word` a final answer of the last one, the registry itself, is more than that of any mirror.
    """
    errors: dict[Mirror, RegistryError] = {}
    for mirror in sorted(mirrors, key=lambda mirror: (avoid(mirror), mirror.health.unwell())):
        health = mirror.health
        if seconds := health.held():
            words = f"{mirror.name} asks not to be contacted for {seconds:.1f} s: {health.reason}"
            errors[mirror] = RegistryError(words, temporary=True, retry_after=seconds)
            continue
        claimed = health.claim()
        try:
            result = attempt(mirror)
        except RegistryError as error:
            if isinstance(error, TransportError) and error.kind == "cancelled":
                raise
            if error.temporary or isinstance(error, TransportError):
                health.failed(error, claimed)
            if begun():
                raise
            errors[mirror] = error
        else:
            health.good()
            return result
    if last_word and not errors[mirrors[-1]].temporary:
        raise errors[mirrors[-1]]
    raise _most_telling([errors[mirror] for mirror in mirrors])


def _most_telling(errors: Sequence[RegistryError]) -> PyerofsError:
    temporary = [error for error in errors if error.temporary]
    if temporary:
        waits = [error.retry_after for error in temporary]
        chosen = temporary[-1]
        # As soon as one of them may be asked again, that is worth a try.
        known = [wait for wait in waits if wait is not None]
        chosen.retry_after = min(known) if known and len(known) == len(waits) else None
        return chosen
    return next((error for error in reversed(errors) if not isinstance(error, NotFoundError)), errors[-1])
