"""A compressed layer without an index: one stream from its start, which every read waits for.

The stream is fetched once, in order, into a file without a name beside the cache, and read from there. Where it breaks
off it goes on with the next compressed byte and the same decompressor. Its end decides: unless the compressed bytes
have the layer's digest, and the image its own where that is known, everything that came of it is taken back. The last
granule is kept back until then, so that what is in the cache is never complete without having been verified.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from typing import IO, TYPE_CHECKING

from ..cache.paths import make_directory
from ..core import GRANULE
from ..erofs import superblock
from ..erofs.layer import SIZE_MAX, Storage
from ..erofs.zstd import Inflater
from ..errors import ImageError, PyerofsError, RegistryError, SpoiledError, UnavailableError, unexpected
from ..retry import patiently
from ..tar.allowance import Allowance

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..erofs.layer import Layer
    from .blobs import BlobReader, Connections

    Sink = Callable[[int, bytes], bool]

PIECE = 256 << 10  # bytes handed on at a time
_ZSTD = b"\x28\xb5\x2f\xfd"
LOOK = 0.2  # seconds between two looks at cancel


class StreamSource:
    """A source that reads a compressed layer without an index, as one stream.

    `size`: of the filesystem by its superblock, which the stream's beginning brings, or what an earlier opening has
    found. open() before anything else. A stream that has broken off goes on when the next read asks for it: who reads
    decides how long it is tried. Thread-safe. Owns the connections, a thread while the stream comes, the file.
    """

    def __init__(
        self,
        name: str,
        layer: Layer,
        blob: BlobReader,
        connections: Connections,
        directory: str,
        size: int | None = None,
        allowance: Allowance | None = None,
        giver: str = "",
    ):
        self.name = name
        self.digest = layer.digest
        self.layer = layer.number
        self.origin = layer
        self.storage = storage_of(layer, giver)
        self.size = size or 0
        self._blob = blob
        blob.checked = True  # by the digest of all of it
        self.connections = connections
        self._directory = directory
        self._allowance = allowance or Allowance(layer.size, SIZE_MAX)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._error: PyerofsError | None = None  # that ended the stream's last attempt
        self._spoiled: SpoiledError | None = None
        self._pass: _Pass | None = None
        self._content: str | None = None

    def open(self, cancel: Callable[[], bool], timeout: float) -> None:
        """Learns the size. Raises RegistryError, ImageError, UnavailableError."""
        if not self.size:
            self.size = patiently(lambda _: self._wait(0, cancel), cancel, timeout).size

    def read_range(
        self, offset: int, length: int, sink: Sink, *, whole: Callable[[], None], cancel: Callable[[], bool]
    ) -> None:
        at, end = offset, offset + length
        while at < end:
            found = self._wait(at, cancel)
            piece = found.read(min(found.available, end, at + PIECE) - at, at)
            if not sink(at, piece):
                return
            at += len(piece)
            self._check()  # what has just been given may have been taken back before it arrived

    def _wait(self, at: int, cancel: Callable[[], bool]) -> _Pass:
        """Until the image's byte at `at` is there; begins the stream where it is not under way."""
        with self._changed:
            if self._thread is None:
                self._error = None
            while True:
                self._check()
                if self._pass is not None and self._pass.available > at:
                    return self._pass
                if self._error is not None:
                    raise self._error
                if cancel() or self._closing:
                    raise RegistryError(f"{self.name}: the request was cancelled")
                self._begin()
                self._changed.wait(LOOK)

    def _check(self) -> None:
        if self._spoiled is not None:
            raise self._spoiled

    def _begin(self) -> None:
        """Begin the stream where it is not under way. The caller holds the lock."""
        if self._thread is None:
            if self._pass is None:
                self._pass = _new_pass(self._directory, self.origin, self.size, self._allowance)
            self._error = None
            thread = threading.Thread(target=self._work, args=(self._pass,), name="pyerofs-stream", daemon=True)
            thread.start()
            self._thread = thread

    def _work(self, stream: _Pass) -> None:
        error: PyerofsError | None = None
        try:
            self._fetch(stream)
            stream.finish()
        except OSError as e:
            error = UnavailableError(f"{self.name}: cannot keep what is decompressed in the cache: {e.strerror}")
        except PyerofsError as e:
            error = e
        except Exception as e:  # waiting reads would wait for ever
            error = unexpected(e)
        with self._changed:
            if isinstance(error, ImageError):  # the layer is no good, or the registry is not: either way none of it is
                self._spoiled = SpoiledError(f"{self.name}: {error}")
            elif error is None:
                self._content = stream.content
            self._error = error
            self._thread = None
            self._changed.notify_all()

    def _fetch(self, stream: _Pass) -> None:
        def sink(at: int, data: bytes) -> bool:
            before = stream.available
            stream.feed(at, data)
            if stream.available > before:
                with self._changed:
                    self._changed.notify_all()
            return not self._closing

        first = stream.position
        if first < self._blob.size:
            self._blob.read_range(first, self._blob.size - first, sink, cancel=lambda: self._closing)
        if self._closing:
            raise RegistryError(f"{self.name}: the stream was given up")

    def content(self) -> str | None:
        return self._content

    def complete(self) -> None:
        with self._changed:
            if self._thread is None and self._pass is not None:
                self._pass.close()
                self._pass = None

    def close(self) -> None:
        with self._changed:
            self._closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join()
        self.complete()
        self.connections.close()


def storage_of(layer: Layer, giver: str) -> Storage:
    """How what such a layer decompresses to is kept."""
    return Storage(layer.given_key(giver), fill=True, shared=layer.shared_key(), giver=giver)


class _Pass:
    """One way through the stream.

    `position`: compressed bytes that have come; `available`: image bytes that may be read. feed() and finish() are for
    one thread, read() for any. Owns its file.
    """

    def __init__(self, file: IO[bytes], layer: Layer, size: int, allowance: Allowance):
        self.size = size
        self._allowance = allowance
        self.position = 0
        self.available = 0
        self.content = ""  # the digest of the image's bytes, once it is there
        self._file = file
        self._layer = layer
        self._made = 0  # bytes that were decompressed
        self._compressed = hashlib.new(layer.digest.partition(":")[0])
        self._algorithm = layer.content.partition(":")[0] or "sha256"
        self._plain = hashlib.new(self._algorithm)
        self._inflater = Inflater(self._write)

    def feed(self, at: int, data: bytes) -> None:
        """Take the blob's bytes at `at`; those that have come before are passed over. Raises ImageError, OSError."""
        data = data[max(0, self.position - at) :]
        if not self.position:
            self._check_start(data)
        self._compressed.update(data)
        if not self.content or self._layer.content:  # else bytes behind the image do not matter
            self._inflater.feed(data)
        self.position += len(data)
        if self.size:
            self.available = min(self._made, (self.size - 1) // GRANULE * GRANULE)

    def _check_start(self, data: bytes) -> None:
        """Name what is no zstd data, where that can be told; else the decompressor calls it corrupt."""
        name = superblock.known_format(data)
        if name and not data.startswith(_ZSTD):
            raise ImageError(f"the layer is not zstd data: it looks like {name}")

    def _write(self, piece: bytes) -> None:
        self._allowance.check(self._made + len(piece))
        kept = piece[: max(0, self.size - self._made)] if self.size else piece
        view = memoryview(kept)
        if self.size and not kept.strip(b"\0"):
            view = view[:0]  # a hole, which takes no room
        while view:
            view = view[os.pwrite(self._file.fileno(), view, self._made + len(kept) - len(view)) :]
        if self._made < superblock.HEAD <= self._made + len(piece):
            self._look()
            kept = piece[: max(0, self.size - self._made)]
        self._plain.update(kept)
        self._made += len(piece)
        if self.size and not self.content and self._made >= self.size:
            self.content = f"{self._algorithm}:{self._plain.hexdigest()}"
        self._plain.update(piece[len(kept) :])

    def _look(self) -> None:
        """Take the size from the superblock. What lies behind that is of no use to the filesystem."""
        head = os.pread(self._file.fileno(), superblock.HEAD, 0)
        found = superblock.parse(head, os.sysconf("SC_PAGESIZE")).size
        if not superblock.HEAD <= found <= SIZE_MAX or found != (self.size or found):
            raise ImageError(f"by its superblock the image has {found} bytes")
        self._allowance.check(found)
        os.ftruncate(self._file.fileno(), max(found, os.fstat(self._file.fileno()).st_size))
        self.size = found

    def finish(self) -> None:
        """All has come: is it what it should be? Raises ImageError."""
        if not self.size:
            superblock.parse(os.pread(self._file.fileno(), superblock.HEAD, 0))  # which says what is wrong with it
        digest = f"{self._compressed.name}:{self._compressed.hexdigest()}"
        if digest != self._layer.digest:
            raise ImageError(f"the registry's bytes for {self._layer.digest} are {digest}")
        if self._made < self.size:
            raise ImageError(f"the image is truncated: it has {self._made} bytes, and {self.size} by its superblock")
        plain = f"{self._algorithm}:{self._plain.hexdigest()}"
        if self._layer.content and plain != self._layer.content:
            raise ImageError(f"the layer decompresses to {plain} instead of {self._layer.content}")
        self.available = self.size

    def read(self, length: int, at: int) -> bytes:
        """Return up to `length` bytes at `at`. Raises UnavailableError."""
        try:
            return os.pread(self._file.fileno(), length, at)
        except OSError as e:
            raise UnavailableError(f"cannot read back what was decompressed: {e.strerror}") from None

    def close(self) -> None:
        self._file.close()


def _new_pass(directory: str, layer: Layer, size: int, allowance: Allowance) -> _Pass:
    """Start at the beginning. Raises UsageError, UnavailableError."""
    try:
        make_directory(directory)
        return _Pass(tempfile.TemporaryFile(dir=directory), layer, size, allowance)
    except OSError as e:
        raise UnavailableError(f"cache directory {directory}: {e.strerror}") from None
