"""Reading ranges of one blob at a registry: every answer is judged before a byte of it is passed on.

OCI distribution specification, "Pulling blobs"; RFC 9110 sections 14 and 15. A Blob may be used by any number of
threads, and owns nothing that has to be closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .answer import REDIRECTS, Response, content_range, failure, number, presigned_lifetime, server_time
from .curlerror import TransportError
from .endpoint import HOPS_MAX, Endpoint, next_hop
from .errors import RegistryError
from .transport import Request
from .url import Url

if TYPE_CHECKING:
    from .registry import Registry

Sink = Callable[[int, bytes], bool]
Cancel = Callable[[], bool]

_MARGIN_MAX = 30.0  # seconds before a link's end at which it is no longer used
# How a link answers that has run out: S3 and CloudFront 403, Google 400, others as if there were nothing.
_LINK_REFUSED = frozenset((400, 401, 403, 404, 410))


class _EntityTag:
    """The first strong ETag that one place answered with; one that differs is another file (RFC 9110 section 8.8.3)."""

    __slots__ = ("_first",)

    def __init__(self) -> None:
        self._first: str | None = None

    def differs(self, head: Response) -> bool:
        tag = head.headers.get("etag")
        if not tag or not tag.startswith('"'):
            return False
        if self._first is None:
            self._first = tag
        return tag != self._first


class _Link:
    """Where the bytes are, once a redirect has said so; shared by all threads until it is refused or runs out."""

    __slots__ = ("endpoint", "ends_at", "entity_tag", "url")

    def __init__(self, endpoint: Endpoint, url: Url, ends_at: float) -> None:
        self.endpoint = endpoint
        self.url = url
        self.ends_at = ends_at  # of the blob's clock
        self.entity_tag = _EntityTag()


class Blob:
    """`size` bytes with the digest `digest`, readable at any offset. `clock` counts seconds."""

    def __init__(
        self, registry: Registry, digest: str, size: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.digest = digest
        self.size = size
        self._registry = registry
        self._clock = clock
        self._lock = threading.Lock()  # guards _link; held for a moment only
        self._link: _Link | None = None
        self._locating = threading.Lock()  # held during one request to the registry; taken before _lock
        self._redirects = False  # whether the registry redirects, as far as it is known
        self._entity_tag = _EntityTag()  # of the registry's own answers

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Sink,
        *,
        whole: Callable[[], None] | None = None,
        cancel: Cancel | None = None,
    ) -> int:
        """One attempt at bytes [offset, offset + length). Gives each piece to sink(offset, piece), in order, on this
        thread; False ends it. Returns how many bytes the sink was given.

        A registry that ignores the range sends the whole blob: `whole` is called, then the pieces come from offset 0
        on. RegistryError: .temporary says whether another attempt may help. What the sink was given before an error is
        good. What a callback raises comes out unchanged.
        """
        if not 0 <= offset < offset + length <= self.size:
            raise ValueError("the range does not lie within the blob")
        answer = _Answer(self, offset, length, sink, whole, cancel)
        hops, again = 0, False
        link = self._kept()
        while True:
            if link is None:
                found = self._locate(answer)
                if isinstance(found, Response):
                    return answer.finish(found)
                link = found
                hops += 1
            response = self._follow(link, answer)
            if response.status in REDIRECTS:
                hops += 1
                if hops > HOPS_MAX:
                    self._drop(link)
                    raise RegistryError(f"{self._registry.host}: {self}: more than {HOPS_MAX} redirects")
                link = self._keep(link.endpoint, response)
                continue
            refused = response.status in _LINK_REFUSED
            if refused or answer.changed:
                self._drop(link)
            if not refused or again:
                return answer.finish(response)
            answer.note = f"the link was refused, {response.status}"
            link, hops, again = self._kept(), 0, True

    def __str__(self) -> str:
        return f"blob {self.digest}"

    def _locate(self, answer: _Answer) -> _Link | Response:
        """Asks the registry: its answer, or the link that it redirected to. One thread asks for a link, for all."""
        if not self._redirects:
            return self._ask_registry(answer)
        with self._locating:
            return self._kept() or self._ask_registry(answer)

    def _ask_registry(self, answer: _Answer) -> _Link | Response:
        answer.entity_tag = self._entity_tag
        endpoint, response = self._registry.ask(
            lambda endpoint: endpoint.send(answer.request(endpoint.url(f"blobs/{self.digest}")))
        )
        if answer.changed:
            self._entity_tag = _EntityTag()
        self._redirects = response.status in REDIRECTS
        return self._keep(endpoint, response) if self._redirects else response

    def _follow(self, link: _Link, answer: _Answer) -> Response:
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


class _Answer:
    """Judges the answer to one range request and numbers its bytes. Belongs to one thread."""

    def __init__(
        self,
        blob: Blob,
        offset: int,
        length: int,
        sink: Sink,
        whole: Callable[[], None] | None,
        cancel: Cancel | None,
    ) -> None:
        self._blob = blob
        self._offset = offset
        self._length = length
        self._sink = sink
        self._whole = whole
        self._cancel = cancel
        self._begin = self._position = self._end = 0
        self._error: RegistryError | None = None
        self.entity_tag = _EntityTag()
        self.changed = False
        self.note = ""

    def request(self, url: Url) -> Request:
        wanted = ("Range", f"bytes={self._offset}-{self._offset + self._length - 1}")
        return Request(url, (wanted,), sink=self.piece, usable=self.usable, cancel=self._cancel, note=self.note)

    def usable(self, head: Response) -> bool:
        """Whether the body that comes now is the range that was asked for, or the whole blob."""
        self._error = None
        if head.status not in (200, 206):
            return False
        partial = head.status == 206
        self._begin, length = (self._offset, self._length) if partial else (0, self._blob.size)
        self._position, self._end = self._begin, self._begin + length
        if partial:
            self._check_range(head)
        encoding = head.headers.combined("content-encoding")
        if encoding and encoding.lower() != "identity":
            self._refuse(head, f"the answer is encoded ({encoding[:40]!r}), which was not asked for")
        declared = head.headers.combined("content-length")
        if declared is not None and number(declared) != length:
            self._refuse(head, f"the answer is {declared[:40]!r} bytes long instead of {length}")
        if not self._error and self.entity_tag.differs(head):
            self.changed = True
            self._refuse(head, "the ETag has changed, so this is another file")
        if self._error:
            return False
        if not partial and self._whole:
            self._whole()
        return True

    def piece(self, data: bytes) -> bool:
        start = self._position
        if len(data) > self._end - start:
            self._error = RegistryError(f"{self._blob}: the answer is longer than it should be", temporary=True)
            return False
        self._position = start + len(data)
        return self._sink(start, data)

    def finish(self, response: Response) -> int:
        """Bytes given to the sink. RegistryError unless that is all, or all that the sink wanted."""
        if self._error:
            raise self._error
        where = response.url.authority
        if response.status in (200, 206):
            got, wanted = self._position - self._begin, self._end - self._begin
            if got == wanted or response.stopped:
                return got
            raise RegistryError(f"{where}: {self._blob}: {got} bytes came instead of {wanted}", temporary=True)
        if response.status == 416:
            raise RegistryError(
                f"{where}: {self._blob} is not {self._blob.size} bytes long: 416, range not satisfiable"
            )
        raise failure(response, str(self._blob), time.time())

    def _check_range(self, head: Response) -> None:
        stated = content_range(head.headers.combined("content-range"))
        if stated is None:
            self._refuse(head, "206 without a usable Content-Range")
            return
        first, last, total = stated
        wanted = (self._offset, self._offset + self._length - 1)
        if total is not None and total != self._blob.size:
            self._refuse(head, f"it is {total} bytes long there instead of {self._blob.size}", temporary=False)
        elif (first, last) != wanted:
            self._refuse(head, f"bytes {first}-{last} came instead of {wanted[0]}-{wanted[1]}")

    def _refuse(self, head: Response, why: str, *, temporary: bool = True) -> None:
        """The first reason counts."""
        if not self._error:
            self._error = RegistryError(f"{head.url.authority}: {self._blob}: {why}", temporary=temporary)
