"""The pushing side of one repository at a registry: blobs in pieces that can be resumed, and manifests.

OCI distribution specification, "Push". For one thread at a time; owns nothing that has to be closed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ..errors import RegistryError, UsageError
from ..http.answer import REDIRECTS, Response, failure, number
from ..http.request import NOTHING, Content, Request
from ..http.url import Url, form
from ..retry import delay, pause
from .client import Registry
from .endpoint import Endpoint
from .redirect import next_hop

PIECE = 16 << 20  # bytes of one PATCH: what is lost at the most when a connection breaks
ATTEMPTS = 8  # failures in a row, with nothing that came to lie at the registry between them
STALLS = 2  # answers in a row by which the registry has no more than before, after which another way is taken
# Seconds that a registry may be silent: it puts away a piece, or looks through all that it was sent.
_PATIENCE = {"PATCH": 60.0, "PUT": 300.0}
_TIMEOUT = 60.0  # seconds for an exchange without a body
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
# Refusals after which the registry is asked what it has: the upload is gone, or is not where we thought.
_OUT_OF_STEP = frozenset((400, 404, 416))
_NO_STATUS = frozenset((400, 404, 405, 410, 416, 501))  # of the question for that: it knows nothing, or cannot say
_NO_HEAD = frozenset((400, 405, 501))  # of registries and proxies that do not know the method
_NO_PIECES = frozenset((400, 404, 405, 411, 413, 416, 501))  # of the first one
_BYTES = ("Content-Type", "application/octet-stream")

Progress = Callable[[int], None]  # bytes that have been sent, which may go back
T = TypeVar("T")


# How a blob is sent: from where the registry's Range says that it has come to; where that does not move although pieces
# are taken (as at ECR), by what has been sent; and where that is not what the registry has in the end, all at once.
_BY_RANGE, _BY_SENT, _WHOLE = range(3)


class _Stalled(RegistryError):
    """The registry answers, but has no more than before, or will not go on from there: waiting does not help."""


class _Session(NamedTuple):
    """An upload under way: where it goes on, and how many bytes the registry has."""

    url: Url
    received: int


class _Sending:
    """One blob on its way. `in_step`: the session is what the registry has, as far as we know.

    `best`: the most bytes that the registry had, this `way`; `stalls`: answers since then that brought nothing;
    `wasted`: bytes that it took with a good answer, and has not by its next word.
    """

    def __init__(self, what: str, content: Content, progress: Progress, piece: int, way: int) -> None:
        self.what = what
        self.content = content
        self.piece = piece
        self.way = way
        self.session: _Session | None = None
        self.in_step = True
        self.ending = self.ended = False
        self.best = self.stalls = self.wasted = 0
        self._progress = progress

    @property
    def whole(self) -> bool:
        return self.way == _WHOLE or self.content.length <= self.piece

    def advanced(self) -> bool:
        """Whether the registry has more than ever before."""
        if self.session is None or self.session.received <= self.best:
            return False
        self.best, self.stalls = self.session.received, 0
        return True

    def go(self, way: int) -> None:
        """From the start, another way."""
        self.way = way
        self.session = None
        self.in_step = True
        self.best = self.stalls = self.wasted = 0

    def part(self, start: int, end: int) -> Content:
        def read(offset: int, count: int) -> bytes:
            piece = self.content.read(start + offset, count)
            self._progress(start + offset + len(piece))
            return piece

        return Content(end - start, read)


def scopes(repository: str, mount_from: str = "") -> tuple[str, ...]:
    """Return what a token must be good for, to push to the repository and to mount blobs of another one there."""
    own = f"repository:{repository}:pull,push"
    return (own, f"repository:{mount_from}:pull") if mount_from else (own,)


class Uploads:
    """Pushes to `registry` itself, whatever its mirrors. Raises UsageError where hosts.toml lets nothing be pushed.

    Every method raises RegistryError (AuthError) after all that could be tried, and UsageError of the credentials.
    """

    def __init__(self, registry: Registry, cancel: Callable[[], bool] = lambda: False, piece: int = PIECE) -> None:
        self._mirror = registry.mirrors[-1]
        if "push" not in self._mirror.capabilities:
            raise UsageError(f"{registry.host}: by hosts.toml nothing may be pushed there")
        self._cancel = cancel
        self._piece = piece
        self._way = _BY_RANGE  # in which the last blob could be sent

    def has_blob(self, digest: str) -> bool:
        return self._has(f"blobs/{digest}", f"blob {digest}")

    def has_manifest(self, digest: str, media_type: str) -> bool:
        return self._has(f"manifests/{digest}", f"manifest {digest}", media_type)

    def _has(self, path: str, what: str, accept: str = "*/*") -> bool:
        return self._look(path, what, accept) or False

    def _look(self, path: str, what: str, accept: str = "*/*") -> bool | None:
        """Whether it is there; None: this registry does not say."""

        def ask() -> bool | None:
            response = self._send("HEAD", path, headers=(("Accept", accept),))
            if response.status == 200 or response.status in REDIRECTS:
                return True
            if response.status == 404:
                return False
            if response.status in _NO_HEAD:
                return None
            raise failure(response, what, time.time())

        return self._patiently(ask)

    def put_manifest(self, reference: str, body: bytes, media_type: str) -> bool:
        """Under a tag or its digest; what it names must be there.

        Returns whether the registry itself keeps in mind what the manifest refers to, if it does.
        """

        def put() -> bool:
            headers = (("Content-Type", media_type),)
            path, what = f"manifests/{reference}", f"manifest {reference}"
            response = self._send("PUT", path, Content.of(body), headers)
            self._check_put(response, path, what, media_type)
            return bool(response.headers.get("oci-subject"))

        return self._patiently(put)

    def _check_put(self, response: Response, path: str, what: str, accept: str = "*/*") -> None:
        """201 is the word for it. Any other success is believed if what was sent is there, as far as can be seen."""
        if not _is_good(response):
            raise failure(response, what, time.time())
        if response.status != 201 and self._look(path, what, accept) is False:
            words = f"{self._mirror.name}: {what}: it was taken ({response.status}), but is not there"
            raise RegistryError(words, temporary=True)

    def mount_blob(self, digest: str, repository: str) -> bool:
        """Lets this repository have a blob of another one at the same registry; False: that one has to be sent."""

        def ask() -> bool:
            query = form([("mount", digest), ("from", repository)])
            response = self._send("POST", f"blobs/uploads/?{query}", NOTHING)
            if response.status == 202:  # it has begun an upload instead, which will not be finished
                return False
            # A registry may refuse what it does not know, or what the token is not good for: then it is sent.
            if response.status != 201 and (response.status in (408, 429) or response.status >= 500):
                raise failure(response, f"blob {digest}", time.time())
            return response.status == 201

        return self._patiently(ask)

    def put_blob(self, digest: str, content: Content, progress: Progress = lambda sent: None) -> None:
        """Send the blob. After a failure it goes on where the registry says that it has come to.

        A registry whose word for that cannot be true gets it another way (see _BY_RANGE).
        """
        sending = _Sending(f"blob {digest}", content, progress, self._piece, self._way)
        failures = 0
        while True:
            try:
                self._step(sending, digest)
                if sending.ended:
                    self._way = sending.way
                    return
                if sending.advanced():
                    failures = 0
                continue
            except _Stalled as error:
                if sending.ending and self.has_blob(digest):
                    return
                sending.stalls += 1
                if sending.stalls >= STALLS or sending.wasted > content.length or sending.way != _BY_RANGE:
                    if sending.whole:
                        raise RegistryError(str(error)) from None
                    sending.go(sending.way + 1)
                    failures = 0
                    continue
                pause(delay(sending.stalls - 1), self._cancel)
            except RegistryError as error:
                failures += 1
                if not error.temporary or failures >= ATTEMPTS:
                    raise
                pause(delay(failures - 1, error.retry_after), self._cancel)
                if sending.ending and self.has_blob(digest):  # it was only the answer that got lost
                    return
            sending.in_step = False

    def _step(self, sending: _Sending, digest: str) -> None:
        """One exchange on the way."""
        session, content = sending.session, sending.content
        sending.ending = False
        # What is sent as a whole begins anew, and what a registry has by our count alone.
        if session is None or (not sending.in_step and (sending.whole or sending.way != _BY_RANGE)):
            sending.session, least = self._begin(sending.what)
            sending.piece = max(sending.piece, least)
            sending.in_step = True
        elif not sending.in_step:
            sending.session = self._ask(session, sending.what, content.length)
            sending.in_step = True
        elif sending.whole or session.received == content.length:
            sending.ending = True
            self._finish(session, digest, sending)
            sending.ended = True
        else:
            self._patch(session, sending)

    def _begin(self, what: str) -> tuple[_Session, int]:
        """Begin an upload; return it, and the fewest bytes of a piece that this registry takes."""
        response = self._send("POST", "blobs/uploads/", NOTHING)
        if not _is_good(response):
            raise failure(response, what, time.time())
        least = number(response.headers.get("oci-chunk-min-length")) or 0
        return _Session(self._location(response, what), 0), least

    def _ask(self, session: _Session, what: str, length: int) -> _Session | None:
        """How far it has come, of `length` bytes; None: the registry knows nothing of it any more."""
        response = self._send("GET", session.url)
        if _is_good(response):
            url = self._location(response, what) if response.headers.get("location") else session.url
            received = _received(response) or 0
            if received <= length:
                return _Session(url, received)
            return None  # whatever that is, it is not what we sent
        if response.status in _NO_STATUS:
            return None
        raise failure(response, what, time.time())

    def _patch(self, session: _Session, sending: _Sending) -> None:
        """Send the next piece. Raises _Stalled where the registry has no more of it than before."""
        start, what = session.received, sending.what
        end = min(start + sending.piece, sending.content.length)
        headers = (_BYTES, ("Content-Range", f"{start}-{end - 1}"))
        response = self._send("PATCH", session.url, sending.part(start, end), headers)
        if _is_good(response):
            url = self._location(response, what) if response.headers.get("location") else session.url
            received = _received(response) if sending.way == _BY_RANGE else end
            received = end if received is None else received
            sending.session = _Session(url, received)
            if start < received <= end:
                sending.wasted += end - received
                if sending.wasted <= sending.content.length:
                    return
            sending.wasted += end - start
            words = f"{self._mirror.name}: {what}: it says that it has {received} bytes of {start} to {end}"
            raise _Stalled(words)
        if response.status in _OUT_OF_STEP and start:
            raise _Stalled(str(failure(response, what, time.time())))
        if response.status not in _NO_PIECES:
            raise failure(response, what, time.time())
        sending.go(_WHOLE)  # some take a blob only as a whole

    def _finish(self, session: _Session, digest: str, sending: _Sending) -> None:
        target = session.url.target
        url = session.url._replace(target=f"{target}{'&' if '?' in target else '?'}{form([('digest', digest)])}")
        part = sending.part(0, sending.content.length) if sending.whole else NOTHING
        response = self._send("PUT", url, part, (_BYTES,))
        if sending.whole and response.status in (404, 416):
            raise RegistryError(str(failure(response, sending.what, time.time())), temporary=True)
        if not sending.whole and response.status in _NO_PIECES:  # what lies there is not what we have sent
            raise _Stalled(str(failure(response, sending.what, time.time())))
        self._check_put(response, f"blobs/{digest}", sending.what)

    def _location(self, response: Response, what: str) -> Url:
        if not response.headers.get("location"):
            raise RegistryError(f"{self._mirror.name}: {what}: the answer does not say where to send it")
        return next_hop(response, response.url)

    def _send(
        self,
        method: str,
        where: str | Url,
        content: Content | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Response:
        """`where`: below the repository, or where the registry said."""
        long = (content is not None and content.length > 0) or method == "PUT"

        def exchange(endpoint: Endpoint) -> Response:
            url = endpoint.url(where) if isinstance(where, str) else where
            request = Request(
                url, headers, method=method, content=content, cancel=self._cancel, patience=_PATIENCE.get(method)
            )
            return endpoint.send(request if long else request._replace(timeout=_TIMEOUT))

        return self._mirror.ask(exchange)[1]

    def _patiently(self, ask: Callable[[], T]) -> T:
        for attempt in range(ATTEMPTS - 1):
            try:
                return ask()
            except RegistryError as error:
                if not error.temporary:
                    raise
                pause(delay(attempt, error.retry_after), self._cancel)
        return ask()


def _is_good(response: Response) -> bool:
    return 200 <= response.status < 300


def _received(response: Response) -> int | None:
    """Bytes that the registry has; None: it does not say. "0-0" is what registries say for none."""
    found = _RANGE.fullmatch(response.headers.get("range") or "")
    if not found:
        return None
    last = int(found[1])
    return last + 1 if last else 0
