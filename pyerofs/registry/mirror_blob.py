"""One mirror's copy of a blob: where its bytes are, as far as redirects have told, and one attempt at a range of it.

RFC 9110 section 15.4. Any number of threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..errors import CorruptError, RegistryError
from ..http.answer import REDIRECTS, Response, presigned_lifetime, server_time
from ..http.curlerror import TransportError
from ..http.url import Url
from ..retry import boottime
from .endpoint import Endpoint
from .mirror import Mirror
from .range_response import EntityTag, RangeResponse
from .redirect import HOPS_MAX, next_hop

_MARGIN_MAX = 30.0  # seconds before a link's end at which it is no longer used
_AVOID = 60.0  # seconds; a mirror may get what it has not, or be put in order
# How a link answers that has run out: S3 and CloudFront 403, Google 400, others as if there were nothing.
_LINK_REFUSED = frozenset((400, 401, 403, 404, 410))
# A pull-through cache sends the whole blob until it has it; who does so more often than this knows no ranges.
_LEAVES_MAX = 2


class _Link:
    """Where the bytes are, once a redirect has said so; shared by all threads until it is refused or runs out."""

    __slots__ = ("endpoint", "ends_at", "entity_tag", "url")

    def __init__(self, endpoint: Endpoint, url: Url, ends_at: float) -> None:
        self.endpoint = endpoint
        self.url = url
        self.ends_at = ends_at  # of the copy's clock
        self.entity_tag = EntityTag()


class MirrorBlob:
    """The blob `digest` at `mirror`. `clock` counts seconds, also those of a suspended machine: links run out then."""

    def __init__(self, mirror: Mirror, digest: str, clock: Callable[[], float] = boottime) -> None:
        self._mirror = mirror
        self._digest = digest
        self._clock = clock
        self._avoid_until = 0.0
        self._lock = threading.Lock()  # guards _link; held for a moment only
        self._link: _Link | None = None
        self._locating = threading.Lock()  # held during one request to the registry; taken before _lock
        self._redirects = False  # whether the registry redirects, as far as it is known
        self._entity_tag = EntityTag()  # of the registry's own answers
        self._leaves = 0  # how often the whole blob came unasked, and was left

    def avoided(self) -> bool:
        """Whether it was not there, was another one or could not be had for good, a short time ago."""
        return self._clock() < self._avoid_until

    def attempt(self, answer: RangeResponse) -> int:
        """Lets `answer` judge one answer, and gives how many bytes it has passed on. RegistryError."""
        answer.fresh, answer.note = self._mirror.health.failures > 0, self._mirror.note
        answer.plain, answer.thrifty = False, self._leaves < _LEAVES_MAX
        try:
            try:
                return self._attempt(answer)
            except RegistryError:
                if not answer.ambiguous:
                    raise
            # Without a range it can only be the whole, from its first byte on.
            answer.plain = answer.fresh = True
            answer.note = "it does not say what it sends"
            return self._attempt(answer)
        except RegistryError as error:
            if not error.temporary and not answer.elsewhere and not isinstance(error, TransportError):
                self._avoid_until = self._clock() + _AVOID
            if isinstance(error, CorruptError):  # by the sink, which does not know whose bytes it gets
                raise CorruptError(f"{self._mirror.name}: {error}", error.end) from None
            raise
        finally:
            answer.close()

    def _finish(self, answer: RangeResponse, response: Response) -> int:
        self._leaves += answer.left
        return answer.finish(response)

    def _attempt(self, answer: RangeResponse) -> int:
        hops, again = 0, False
        link = self._kept()
        while True:
            if link is None:
                found = self._locate(answer)
                if isinstance(found, Response):
                    return self._finish(answer, found)
                link = found
                hops += 1
            response = self._follow(link, answer)
            if response.status in REDIRECTS:
                hops += 1
                if hops > HOPS_MAX:
                    self._drop(link)
                    raise RegistryError(f"{self._mirror.name}: {answer}: more than {HOPS_MAX} redirects")
                link = self._keep(link.endpoint, response)
                continue
            refused = response.status in _LINK_REFUSED
            if refused or answer.changed:
                self._drop(link)
            if not refused or again:
                return self._finish(answer, response)
            answer.note = f"the link was refused, {response.status}"
            link, hops, again = self._kept(), 0, True

    def _locate(self, answer: RangeResponse) -> _Link | Response:
        """Asks the registry: its answer, or the link that it redirected to. One thread asks for a link, for all."""
        if not self._redirects:
            return self._ask_registry(answer)
        with self._locating:
            return self._kept() or self._ask_registry(answer)

    def _ask_registry(self, answer: RangeResponse) -> _Link | Response:
        answer.entity_tag = self._entity_tag
        endpoint, response = self._mirror.ask(
            lambda endpoint: endpoint.send(answer.request(endpoint.url(f"blobs/{self._digest}")))
        )
        if answer.changed:
            self._entity_tag = EntityTag()
        self._redirects = response.status in REDIRECTS
        return self._keep(endpoint, response) if self._redirects else response

    def _follow(self, link: _Link, answer: RangeResponse) -> Response:
        answer.entity_tag = link.entity_tag
        try:
            return link.endpoint.send(answer.request(link.url), renew=False)
        except TransportError as error:
            if error.kind in ("resolve", "connect", "tls"):  # that host may be gone for good
                self._drop(link)
            raise

    def _kept(self) -> _Link | None:
        with self._lock:
            if self._link and self._clock() >= self._link.ends_at:
                self._link = None
            return self._link

    def _keep(self, endpoint: Endpoint, response: Response) -> _Link:
        url = next_hop(response, endpoint.origin.url)
        now = server_time(response.headers)
        lifetime = presigned_lifetime(url, time.time() if now is None else now)
        ends_at = float("inf")  # also for one that is over by these clocks: its own server will tell
        if lifetime is not None and lifetime > 0:
            ends_at = self._clock() + lifetime - min(lifetime / 10, _MARGIN_MAX)
        link = _Link(endpoint, url, ends_at)
        with self._lock:
            self._link = link
        return link

    def _drop(self, link: _Link) -> None:
        with self._lock:
            if self._link is link:
                self._link = None
