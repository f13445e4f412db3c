"""The judge of an answer to a range request: which of its bytes, if any, are those that were asked for.

OCI distribution specification, "Pulling blobs"; RFC 9110 sections 8.8, 14 and 15. For one thread at a time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import IO

from ..errors import RegistryError, UnavailableError
from ..http.answer import Response, content_range, failure, number
from ..http.request import Request
from ..http.url import Url
from ..oci.reference import is_digest

Sink = Callable[[int, bytes], bool]
Cancel = Callable[[], bool]

SHORT_MIN = 4096  # bytes that a part of the range must bring, so that many small ones do not pass for progress
HELD_MAX = 8 << 20  # bytes that are held in memory until they are known to be the whole blob; more are in a file
_PIECE = 1 << 20  # bytes
# A header of our own: the reader compares all that comes with an index, so a neighbour may give it pieces of a blob
# that nothing else vouches for (fleet/neighbours.py). Others ignore it.
VERIFIES = ("Pyerofs-Verifies", "chunks")
FAR = 4 << 20  # bytes behind the range that are not worth being read where the next request may get its range


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


class RangeResponse:
    """Judges the answer to one request for [offset, offset + length) of the blob with this digest and size.

    Numbers its bytes for the sink, and believes a place only where the answer states it: by a Content-Range, by a
    Content-Length that is the blob's. A 200 that states nothing may be the
    range, the whole or a part of it: it is held back, in memory or in `directory`, until its end tells; what could not
    be told is `ambiguous`. Where the sink has everything `checked`, a large one is not held back, but refused and then
    believed to be the whole where no range was asked for.

    For the caller to set before a request: `entity_tag`, `fresh`, `note`; `plain`: ask for the whole blob, without a
    range; `thrifty`: leave a whole blob that comes unasked once the range is there. Results: `changed`: the entity tag
    was another one; `left`: a whole blob was left; `elsewhere`: something of the blob is there, but not this range;
    `begun`: the caller has been given something.
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
        checked: bool = False,
        directory: str | None = None,
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
        self.changed = self.begun = self.fresh = self.plain = self.thrifty = False
        self.ambiguous = self.left = self.elsewhere = self._unasked = False
        self._checked, self._directory = checked, directory
        self._held: IO[bytes] | None = None
        self.note = ""

    def __str__(self) -> str:
        return f"blob {self._digest}"

    def request(self, url: Url) -> Request:
        wanted = ("Range", f"bytes={self._offset}-{self._offset + self._length - 1}")
        return Request(
            url,
            (*(() if self.plain else (wanted,)), *((VERIFIES,) if self._checked else ())),
            sink=self.piece,
            usable=self.usable,
            cancel=self._cancel,
            note=self.note,
            fresh=self.fresh,
        )

    def usable(self, head: Response) -> bool:
        """Whether the body that comes now is the range that was asked for, its beginning, or the whole blob."""
        self._error = None
        self.ambiguous = self._unasked = False
        self.close()
        if head.status not in (200, 206):
            return False
        declared = head.headers.combined("content-length")
        self._start, length = self._place(head, declared is not None)
        self._position, self._end = self._start, self._start + length
        encoding = head.headers.combined("content-encoding")
        if encoding and encoding.lower() != "identity":
            self._refuse(head, f"the answer is encoded ({encoding[:40]!r}), which was not asked for")
        if declared is not None and number(declared) != length:
            self._refuse(head, f"the answer is {declared[:40]!r} bytes long instead of {length}")
        if self._is_another(head):
            self._refuse(head, "it has another digest there", temporary=False)
        if not self._error and self.entity_tag.differs(head):
            self.changed = True
            self._refuse(head, "the ETag has changed, so this is another file")
        if self._error:
            return False
        if self._held is None and length > self._length:
            self._unasked = not self.plain
            self._begin_whole()
        return True

    def _begin_whole(self) -> None:
        if self._whole:
            self.begun = True
            self._whole()

    def _place(self, head: Response, has_length: bool) -> tuple[int, int]:
        """Where the body belongs: offset and length; what is refused may give any. RFC 9110, sections 14.4, 15.3.7."""
        text = head.headers.combined("content-range")
        if head.status == 200 and text is None:
            if not has_length and not (self._checked and not self._offset):
                self._place_unstated(head)
            return 0, self._size
        stated = content_range(text)
        if stated is None:
            self._refuse(head, f"{head.status} without a usable Content-Range")
            return self._offset, self._length
        first, last, total = stated
        wanted = self._offset + self._length - 1
        if total is not None and total != self._size:
            self._refuse(head, f"it is {total} bytes long there instead of {self._size}", temporary=False)
        elif head.status == 200 and (first, last) == (0, self._size - 1):
            return 0, self._size
        elif self.plain or first != self._offset or not first <= last <= wanted:
            self._refuse(head, f"bytes {first}-{last} came instead of {self._offset}-{wanted}")
        elif last != wanted and last - first + 1 < SHORT_MIN:
            self._refuse(head, f"of bytes {self._offset}-{wanted} only {first}-{last} came")
        return self._offset, max(0, last - first + 1)

    def _place_unstated(self, head: Response) -> None:
        self.ambiguous = not self.plain
        if self._size <= HELD_MAX or not self._checked:
            self._held = tempfile.SpooledTemporaryFile(HELD_MAX, dir=self._directory)  # noqa: SIM115 - see close()
        elif self.ambiguous:
            self._refuse(head, "200 without a length or a Content-Range may be the range or the whole blob")

    def close(self) -> None:
        """Drop what is held back."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def piece(self, data: bytes) -> bool:
        start, room = self._position, self._end - self._position
        if len(data) > room:  # what belongs to the range is as good as if the rest had come later
            self._error = RegistryError(f"{self}: the answer is longer than it should be", temporary=True)
            data = data[:room]
        if data and self._held is not None:
            self._hold(self._held, data)
            self._position = start + len(data)
            return not self._error
        if data:
            self._position = start + len(data)
            self.begun = True
            return self._sink(start, data) and not self._error and not self._has_enough()
        return False

    def _give_held(self) -> None:
        """Give the sink what was held back: it is the whole blob."""
        held, self._held = self._held, None
        self.ambiguous = False
        self._position = 0
        self._begin_whole()
        if held is not None:
            with held:
                held.seek(0)
                while (piece := held.read(_PIECE)) and self.piece(piece):
                    pass

    def _hold(self, file: IO[bytes], data: bytes) -> None:
        try:
            file.write(data)
        except OSError as e:
            raise UnavailableError(f"cannot hold back {self} in {self._directory or 'TMPDIR'}: {e.strerror}") from None

    @property
    def is_short(self) -> bool:
        """Whether the answer was the beginning of the range, by its own words, and has come whole."""
        return self._start == self._offset and self._position == self._end < self._offset + self._length

    def _has_enough(self) -> bool:
        """Whether all that was asked for has come, and so much more would that it is left."""
        if self.thrifty and self._unasked and self._position >= self._offset + self._length:
            self.left = self._end - self._position > FAR
        return self.left

    def finish(self, response: Response) -> int:
        """Bytes given to the sink. RegistryError unless that is all, or all that the sink wanted."""
        if self._error:
            raise self._error
        where = response.url.authority
        if response.status in (200, 206):
            got, wanted = self._position - self._start, self._end - self._start
            if got == wanted and self._held is not None:
                self._give_held()
                if self._error:
                    raise self._error
            if got == wanted or response.stopped:
                return got
            raise RegistryError(f"{where}: {self}: {got} bytes came instead of {wanted}", temporary=True)
        if response.status == 416:
            raise RegistryError(f"{where}: {self} is not {self._size} bytes long: 416, range not satisfiable")
        # So answers a neighbour that has something of the blob, but not this range.
        self.elsewhere = response.status == 404 and response.headers.get("docker-content-digest") == self._digest
        raise failure(response, str(self), time.time())

    def _is_another(self, head: Response) -> bool:
        """Whether the answer says that it is of another blob: by its digest, which registries also make the ETag."""
        algorithm = self._digest.partition(":")[0] + ":"
        stated = [head.headers.get("docker-content-digest") or "", (head.headers.get("etag") or "").strip('"')]
        return any(is_digest(text) and text.startswith(algorithm) and text != self._digest for text in stated)

    def _refuse(self, head: Response, why: str, *, temporary: bool = True) -> None:
        """Refuse the answer; the first reason counts."""
        if not self._error:
            self._error = RegistryError(f"{head.url.authority}: {self}: {why}", temporary=temporary)
