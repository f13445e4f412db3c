"""The judge of an answer to a range request: which of its bytes, if any, are those that were asked for.

OCI distribution specification, "Pulling blobs"; RFC 9110 sections 8.8, 14 and 15. For one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .answer import Response, content_range, failure, number
from .errors import RegistryError
from .reference import is_digest
from .request import Request
from .url import Url

Sink = Callable[[int, bytes], bool]
Cancel = Callable[[], bool]


class EntityTag:
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


class RangeAnswer:
    """Judges the answer to one request for [offset, offset + length) of the blob with this digest and size.

    Numbers its bytes for the sink. `entity_tag`, `fresh` and `note` are for the caller to set before a request;
    `changed`: the entity tag was another one; `begun`: the caller has been given something.
    """

    def __init__(
        self,
        digest: str,
        size: int,
        offset: int,
        length: int,
        sink: Sink,
        whole: Callable[[], None] | None,
        cancel: Cancel | None,
    ) -> None:
        self._digest = digest
        self._size = size
        self._offset = offset
        self._length = length
        self._sink = sink
        self._whole = whole
        self._cancel = cancel
        self._start = self._position = self._end = 0
        self._error: RegistryError | None = None
        self.entity_tag = EntityTag()
        self.changed = self.begun = self.fresh = False
        self.note = ""

    def __str__(self) -> str:
        return f"blob {self._digest}"

    def request(self, url: Url) -> Request:
        wanted = ("Range", f"bytes={self._offset}-{self._offset + self._length - 1}")
        return Request(
            url,
            (wanted,),
            sink=self.piece,
            usable=self.usable,
            cancel=self._cancel,
            note=self.note,
            fresh=self.fresh,
        )

    def usable(self, head: Response) -> bool:
        """Whether the body that comes now is the range that was asked for, or the whole blob."""
        self._error = None
        if head.status not in (200, 206):
            return False
        partial = head.status == 206
        self._start, length = (self._offset, self._length) if partial else (0, self._size)
        self._position, self._end = self._start, self._start + length
        if partial:
            self._check_range(head)
        encoding = head.headers.combined("content-encoding")
        if encoding and encoding.lower() != "identity":
            self._refuse(head, f"the answer is encoded ({encoding[:40]!r}), which was not asked for")
        declared = head.headers.combined("content-length")
        if declared is not None and number(declared) != length:
            self._refuse(head, f"the answer is {declared[:40]!r} bytes long instead of {length}")
        if self._is_another(head):
            self._refuse(head, "it has another digest there", temporary=False)
        if not self._error and self.entity_tag.differs(head):
            self.changed = True
            self._refuse(head, "the ETag has changed, so this is another file")
        if self._error:
            return False
        if not partial and self._whole:
            self.begun = True
            self._whole()
        return True

    def piece(self, data: bytes) -> bool:
        start, room = self._position, self._end - self._position
        if len(data) > room:  # what belongs to the range is as good as if the rest had come later
            self._error = RegistryError(f"{self}: the answer is longer than it should be", temporary=True)
            data = data[:room]
        if data:
            self._position = start + len(data)
            self.begun = True
            return self._sink(start, data) and not self._error
        return False

    def finish(self, response: Response) -> int:
        """Bytes given to the sink. RegistryError unless that is all, or all that the sink wanted."""
        if self._error:
            raise self._error
        where = response.url.authority
        if response.status in (200, 206):
            got, wanted = self._position - self._start, self._end - self._start
            if got == wanted or response.stopped:
                return got
            raise RegistryError(f"{where}: {self}: {got} bytes came instead of {wanted}", temporary=True)
        if response.status == 416:
            raise RegistryError(f"{where}: {self} is not {self._size} bytes long: 416, range not satisfiable")
        raise failure(response, str(self), time.time())

    def _check_range(self, head: Response) -> None:
        stated = content_range(head.headers.combined("content-range"))
        if stated is None:
            self._refuse(head, "206 without a usable Content-Range")
            return
        first, last, total = stated
        wanted = (self._offset, self._offset + self._length - 1)
        if total is not None and total != self._size:
            self._refuse(head, f"it is {total} bytes long there instead of {self._size}", temporary=False)
        elif (first, last) != wanted:
            self._refuse(head, f"bytes {first}-{last} came instead of {wanted[0]}-{wanted[1]}")

    def _is_another(self, head: Response) -> bool:
        """Whether the answer says that it is of another blob: by its digest, which registries also make the ETag."""
        algorithm = self._digest.partition(":")[0] + ":"
        stated = [head.headers.get("docker-content-digest") or "", (head.headers.get("etag") or "").strip('"')]
        return any(is_digest(text) and text.startswith(algorithm) and text != self._digest for text in stated)

    def _refuse(self, head: Response, why: str, *, temporary: bool = True) -> None:
        """The first reason counts."""
        if not self._error:
            self._error = RegistryError(f"{head.url.authority}: {self}: {why}", temporary=temporary)
