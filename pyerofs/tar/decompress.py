"""The tar stream in a layer's blob: plain, gzip or zstd by what it is, whatever its media type says; hashed as it goes.

RFC 1952, RFC 8878. For one thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from typing import IO, TYPE_CHECKING, Protocol, cast

from ..ahead import Ahead
from ..errors import ImageError, UnavailableError
from .allowance import Allowance

if TYPE_CHECKING:
    from .toc.spans import SpanRecorder

_PIECE = 256 << 10  # bytes
_AHEAD = 16  # pieces that are decompressed before they are read
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC = -4  # bytes, with which a frame begins: a minus tells them from four others
_SKIPPABLE = 0x184D2A50  # to 0x184D2A5F: a frame without content
_OTHERS = ((b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"\x5d\0\0", "lzma"))


class LayerStream:
    """Decompresses `file`, which stays the caller's. Raises ImageError, and UnavailableError without zstandard.

    `algorithm`: of the digest; `allowance`: what it may decompress to, None for any number of bytes. `spans` is told
    of the blob's bytes, and where spans of it can begin. `ahead`: a thread reads `file`, decompresses, hashes and tells
    `spans`, until close().
    """

    def __init__(
        self,
        file: Stream,
        algorithm: str = "sha256",
        allowance: Allowance | None = None,
        spans: SpanRecorder | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        self._piece = memoryview(b"")
        self._algorithm = algorithm
        self._hasher = hashlib.new(algorithm)
        self.size = 0  # bytes that were read
        self._allowance = allowance
        pieces = _hashed(file, spans, self._hasher.update)
        self._ahead = Ahead(pieces, _AHEAD, "pyerofs-inflate") if ahead else None
        self._pieces: Iterator[bytes] = self._ahead or pieces

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, and none only at the end."""
        while not self._piece:
            try:
                self._piece = memoryview(next(self._pieces))
            except StopIteration:
                return b""
            if self._allowance:
                self._allowance.take(len(self._piece))
        found, self._piece = bytes(self._piece[:count]), self._piece[count:]
        self.size += len(found)
        return found

    def finish(self) -> str:
        """Return the digest of the whole stream, including what has not been read."""
        while self.read(_PIECE):
            pass
        return f"{self._algorithm}:{self._hasher.hexdigest()}"

    def close(self) -> None:
        """Tell the thread to end: when `file` gives it something, or is closed. Nothing may be read after it."""
        if self._ahead is not None:
            self._ahead.close()


class Stream(Protocol):
    """What a layer's blob is read from: up to n bytes, and none only at the end."""

    def read(self, count: int, /) -> bytes: ...


class _Peeked:
    """A file whose first bytes have been looked at."""

    def __init__(self, file: Stream, count: int) -> None:
        self.head = b""
        while len(self.head) < count and (piece := file.read(_PIECE)):
            self.head += piece
        self._left, self._file = self.head, file

    def read(self, count: int = -1, /) -> bytes:
        if self._left:
            found, self._left = self._left[:count], self._left[count:]
            return found
        return self._file.read(count)


def _hashed(file: Stream, spans: SpanRecorder | None, update: Callable[[bytes], None]) -> Generator[bytes, None, None]:
    for piece in _pieces(file, spans):
        update(piece)
        yield piece


def _pieces(file: Stream, spans: SpanRecorder | None) -> Iterator[bytes]:
    peeked = _Peeked(file, 6)
    head = peeked.head[:6]
    if head.startswith(_GZIP):
        if spans:
            spans.codec = "span"
        return _gunzip(peeked.read, spans)
    if head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):  # or a skippable frame
        return _unzstd(peeked)
    for magic, name in _OTHERS:
        if head.startswith(magic):
            raise ImageError(f"the layer is compressed with {name}, which images may not be: gzip and zstd are known")
    if spans:
        spans.codec = "none"
    return _plain(peeked.read, spans)


def _gunzip(read: Callable[[int], bytes], spans: SpanRecorder | None) -> Iterator[bytes]:
    """One member after another; zeros may follow."""
    from ..core import GUNZIP_CORRUPT, GUNZIP_MEMBER, GUNZIP_POINT, Gunzip  # deferred: not all that reads needs it

    gunzip = Gunzip(_PIECE, spans.spacing if spans else 0)
    try:
        data = memoryview(read(_PIECE))
        while data:
            full = member = False
            while not member:
                if not data and not full and not (data := memoryview(read(_PIECE))):
                    raise ImageError("the layer's gzip stream is cut short")
                step = gunzip.step(data)
                if step.why == GUNZIP_CORRUPT:
                    raise ImageError("the layer's gzip stream is corrupt")
                if spans:
                    spans.take(data[: step.consumed])
                    if step.why == GUNZIP_POINT:
                        spans.point(step, gunzip.window())
                data = data[step.consumed :]
                full = len(step.plain) == _PIECE
                member = step.why == GUNZIP_MEMBER
                if step.plain:
                    yield step.plain
            rest = bytes(data) or read(_PIECE)
            while rest and not rest.strip(b"\0"):
                if spans:
                    spans.take(rest)
                rest = read(_PIECE)
            if rest and len(rest) < 2:
                rest += read(_PIECE)
            if rest and not rest.startswith(_GZIP):
                raise ImageError("the layer's gzip stream is followed by something else")
            data = memoryview(rest)
    finally:
        gunzip.close()


def _plain(read: Callable[[int], bytes], spans: SpanRecorder | None) -> Iterator[bytes]:
    while piece := read(_PIECE):
        if spans:
            spans.take(piece)
        yield piece


def _unzstd(file: _Peeked) -> Iterator[bytes]:
    try:
        import zstandard  # few layers need it
    except ImportError:
        raise UnavailableError(
            "a layer is compressed with zstd, for which a module is missing: pip install zstandard"
        ) from None
    walked = _Walked(file)
    with zstandard.ZstdDecompressor().stream_reader(
        cast("IO[bytes]", walked), read_across_frames=True, closefd=False
    ) as reader:
        try:
            while piece := reader.read(_PIECE):
                yield piece
            walked.finish()  # for a stream that is cut short is taken for one that has ended
        except zstandard.ZstdError as error:
            raise ImageError(f"the layer's zstd stream is corrupt: {error}") from None


class _Walked:
    """A zstd stream that is followed from block to block while it is read, so that its end can be told.

    RFC 8878, 3.1. What is wrong in any other way is left to the decompressor.
    """

    def __init__(self, file: _Peeked) -> None:
        self._file = file
        self._walk = _blocks()
        self._skip, self._want = next(self._walk)  # bytes to pass over, and to look at then
        self._seen = b""
        self._lost = False  # what comes is no zstd

    def read(self, count: int = -1, /) -> bytes:
        piece = self._file.read(count)
        self._follow(memoryview(piece))
        return piece

    def _follow(self, piece: memoryview) -> None:
        while piece and not self._lost:
            passed = min(self._skip, len(piece))
            self._skip -= passed
            taken = piece[passed : passed + abs(self._want) - len(self._seen)]
            self._seen += taken
            piece = piece[passed + len(taken) :]
            if len(self._seen) == abs(self._want):
                seen, self._seen = self._seen, b""
                try:
                    self._skip, self._want = self._walk.send(int.from_bytes(seen, "little"))
                except StopIteration:
                    self._lost = True

    def finish(self) -> None:
        """Raise ImageError where the stream has ended within a frame."""
        if not self._lost and (self._skip or self._seen or self._want != _MAGIC):
            raise ImageError("the layer's zstd stream is cut short")


def _blocks() -> Generator[tuple[int, int], int]:
    """Yield how many bytes to pass over, and how many to send as a number then; return at what is no frame."""
    skip = 0
    while True:
        magic = yield skip, _MAGIC
        if magic >> 4 == _SKIPPABLE >> 4:
            skip = yield 0, 4
        elif magic == int.from_bytes(_ZSTD, "little"):
            descriptor = yield 0, 1
            single = descriptor >> 5 & 1
            skip = (not single) + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
            last = False
            while not last:
                header = yield skip, 3
                last = bool(header & 1)
                skip = 1 if header >> 1 & 3 == 1 else header >> 3  # a run is one byte, said so many times
            skip += 4 if descriptor & 4 else 0  # a checksum
        else:
            return
