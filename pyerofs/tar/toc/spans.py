"""Cut a layer's blob into spans while it is read once, and keep what that has shown.

As bytes, for this machine's cache only: a line of JSON, columns of little-endian numbers, digests and windows, and a
SHA-256 of all that.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

from ...core import GunzipStep, reduce_window
from .model import Codec
from .span import Checkpoint, pack_window

SPACING = 1 << 20  # plain bytes; see docs/indexes.md for what other ones cost
VERSION = 1
_HEAD_MAX = 128 << 10  # bytes of a span that tell what of its window it needs


class SpanTable(NamedTuple):
    """The spans of a blob of `size` bytes, which is an archive of `archive` bytes, cut every `spacing` plain bytes.

    `codec`: "span" or "none". `digests`: DIGEST_SIZE bytes a span. `places`: of each entry, where in the archive its
    content begins, which is in one piece.
    """

    codec: Codec
    size: int
    archive: int
    spacing: int
    spans: list[Checkpoint]
    digests: bytes
    places: array[int]

    def to_bytes(self) -> bytes:
        """Return the table in its stored form."""
        columns = [array("Q", column) for column in zip(*((s.offset, s.plain) for s in self.spans), strict=True)]
        columns += [array("Q", (len(s.window) for s in self.spans)), self.places]
        parts = [_little(column) for column in columns]
        parts += [bytes(s.bits for s in self.spans), self.digests, b"".join(s.window for s in self.spans)]
        head = {"version": VERSION, "codec": self.codec, "sizes": [self.size, self.archive, self.spacing]}
        body = json.dumps({**head, "parts": [len(part) for part in parts]}).encode() + b"\n" + b"".join(parts)
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what to_bytes() gave. Raises ValueError for anything else, also of another version."""
        body = memoryview(data)[:-32]
        if len(data) < 32 or hashlib.sha256(body).digest() != data[-32:]:
            raise ValueError("the layer's spans are damaged")
        line = data.index(b"\n")
        head = json.loads(data[:line])
        if head["version"] != VERSION:
            raise ValueError("the layer's spans are of another version")
        parts, at = [], line + 1
        for length in head["parts"]:
            parts.append(bytes(body[at : at + length]))
            at += length
        offsets, plain, lengths, places = (_column(part) for part in parts[:4])
        bits, digests, windows = parts[4:]
        spans, at = [], 0
        for offset, start, length, own in zip(offsets, plain, lengths, bits, strict=True):
            spans.append(Checkpoint(offset, start, own, windows[at : at + length]))
            at += length
        size, archive, spacing = head["sizes"]
        return cls(head["codec"], size, archive, spacing, spans, digests, places)


class SpanRecorder:
    """Is told of a blob's bytes as they are read, and of the points of its gzip stream. For one thread; has one itself.

    `codec`: what spans of it are, once that is known; None where it cannot have any. `sparse`: whether a file is not in
    one piece. `archive`: bytes of the archive, to be set before finish().
    """

    def __init__(self, spacing: int = SPACING) -> None:
        self.spacing = spacing
        self.codec: Codec | None = None
        self.sparse = False
        self.spans: list[Checkpoint] = []
        self.digests = bytearray()
        self.size = self.archive = 0
        self._places = array("Q")
        self._pool = ThreadPoolExecutor(1, "pyerofs-window")
        self._windows: dict[int, Future[bytes]] = {}
        self._hasher = hashlib.sha256()
        self._head = bytearray()  # of the span under way
        self._last = b""  # byte

    def take(self, data: bytes | memoryview) -> None:
        """Note the blob's next bytes."""
        if self.codec != "none":
            self._take(data)
            return
        while data:
            if self.size % self.spacing == 0:
                self._begin(Checkpoint(self.size, self.size, 0, b""), b"")
            part = data[: self.spacing - self.size % self.spacing]
            self._take(part)
            data = data[len(part) :]

    def _take(self, data: bytes | memoryview) -> None:
        if not data:
            return
        self.size += len(data)
        self._last = bytes(data[-1:])
        if self.spans:
            self._hasher.update(data)
            self._head += data[: max(0, _HEAD_MAX - len(self._head))]

    def point(self, step: GunzipStep, window: bytes) -> None:
        """Note that a span begins behind what has come, as core.Gunzip says."""
        shared = self._last if step.bits else b""
        self._begin(Checkpoint(step.at - len(shared), step.out, step.bits, window), shared)

    def _begin(self, span: Checkpoint, shared: bytes) -> None:
        self._end()
        self.spans.append(span)
        self._hasher = hashlib.sha256(shared)
        self._head = bytearray(shared)

    def _end(self) -> None:
        if self.spans:
            span = self.spans[-1]
            if span.window:
                self.spans[-1] = span._replace(window=b"")
                self._windows[len(self.spans) - 1] = self._pool.submit(_reduced, span, self._head)
            self.digests += self._hasher.digest()

    def close(self) -> None:
        """End the thread; also where the blob was not read to its end."""
        self._pool.shutdown(cancel_futures=True)

    def entry(self, place: int, *, whole: bool) -> None:
        """Note an entry of the archive, whose content begins at `place`; `whole`: and lies there in one piece."""
        self._places.append(place)
        self.sparse |= not whole

    def finish(self) -> SpanTable | None:
        """Return what the blob was found to be; None where that cannot be told."""
        self._end()
        for number, window in self._windows.items():
            self.spans[number] = self.spans[number]._replace(window=window.result())
        self.close()
        if self.codec is None or self.sparse or not self.spans:
            return None
        digests = bytes(self.digests)
        return SpanTable(self.codec, self.size, self.archive, self.spacing, self.spans, digests, self._places)


def _reduced(span: Checkpoint, head: bytearray) -> bytes:
    return pack_window(reduce_window(head, span.bits, span.window))


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _column(data: bytes) -> array[int]:
    found = array("Q")
    found.frombytes(data)
    if sys.byteorder == "big":
        found.byteswap()
    return found
