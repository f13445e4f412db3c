"""What of this machine's cache may be given to others: blobs that were hashed, and pieces that an index vouches for.

A piece counts only for a reader who says that it compares all pieces with an index itself (registry/range_response.py,
VERIFIES): which index is a blob's, only a manifest says, and that vouches for its own image alone. So whoever has made
this machine mount a lying image has put nothing before readers of others.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from ..cache.directory import EntryInfo, hold
from ..cache.entry import Entry
from ..cache.entry_format import MAP_OFFSET
from ..cache.manifests import ManifestCache
from ..cache.paths import entry_path
from ..core import GRANULE, REQUEST_MAX, Store
from ..erofs.layer import Layer, describe
from ..erofs.native import native_layers
from ..errors import ImageError
from ..oci.manifest import Manifest, parse
from ..oci.reference import is_digest
from ..source.index_file import LoadedIndex, find_index

PIECE = min(1 << 20, REQUEST_MAX)  # bytes
SHORT_MIN = 64 << 10  # bytes of a range's beginning that are worth an answer, where its end is not here
_LOOK = 2.0  # seconds between two looks at what manifests there are


class CachedBlobs:
    """Those of the cache in `directory`. Any number of threads."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._manifests = ManifestCache(directory, lambda _: None)
        self._lock = threading.Lock()
        self._layers: dict[str, tuple[Layer, ...]] = {}  # raw ones with an index, by their blobs' digests
        self._looked = float("-inf")

    def knows(self, digest: str) -> bool:
        """Whether something of the blob may be here."""
        return is_digest(digest) and (bool(self._indexed(digest)) or os.path.isdir(self._path(digest)))

    @contextlib.contextmanager
    def open(self, digest: str, offset: int | None, length: int, *, verifies: bool) -> Iterator[BlobReaderHere | None]:
        """Open the range of a blob, or all of it where the offset is None; None where that is not here, and verified.

        What is opened may be no more than the beginning of the range. A `length` of 0 is up to the end; `verifies`: the
        reader compares each piece with an index. Raises PyerofsError.
        """
        if not is_digest(digest):
            yield None
            return
        with contextlib.ExitStack() as held:
            found = self._open_whole(digest, offset, length, held)
            if found is None and verifies and offset is not None:
                found = self._open_pieces(digest, offset, length, held)
            yield found

    def _path(self, digest: str) -> str:
        return entry_path(self._directory, digest)

    def _open_whole(
        self, digest: str, offset: int | None, length: int, held: contextlib.ExitStack
    ) -> BlobReaderHere | None:
        path = self._path(digest)
        if not os.path.isdir(path):
            return None
        try:
            entry = Entry.open_believed(path)
        except OSError:
            return None
        if entry is None:
            return None
        held.callback(entry.close)
        return _reader(entry, entry.size, offset, length, held)

    def _open_pieces(self, digest: str, offset: int, length: int, held: contextlib.ExitStack) -> BlobReaderHere | None:
        for layer in self._indexed(digest):
            index = find_index(layer, self._directory)
            if index is None or not index.chunks.hash_size:
                continue
            if section := _of_section(layer, index, offset, length):
                return section
            path = entry_path(self._directory, layer.verified_key)
            there = hold(EntryInfo(path, layer.verified_key, 0, 0.0))  # which makes nothing
            if there is None:
                continue
            size = there.size
            there.close()
            if size != index.chunks.size:
                continue
            entry = Entry(self._directory, layer.verified_key, size)
            held.callback(entry.close)
            if not entry.problem and (found := _reader(entry, layer.size, offset, length, held)):
                return found
        return None

    def _indexed(self, digest: str) -> tuple[Layer, ...]:
        with self._lock:
            if digest not in self._layers and time.monotonic() - self._looked > _LOOK:
                self._layers = self._look()
                self._looked = time.monotonic()
            return self._layers.get(digest, ())

    def _look(self) -> dict[str, tuple[Layer, ...]]:
        """Return the layers of all manifests that are kept, whose bytes are in the blob as they are in the image."""
        found: dict[str, dict[Layer, None]] = {}
        for document in self._manifests.all():
            try:
                manifest = parse(document.body, document.media_type)
                if not isinstance(manifest, Manifest):
                    continue
                for number, _ in native_layers(manifest):
                    layer = describe(manifest, number)
                    if layer.index and not layer.compressed and not layer.alone:
                        found.setdefault(layer.digest, {})[layer] = None
            except ImageError:
                continue  # of another image, or of another version
        return {digest: tuple(layers) for digest, layers in found.items()}


class BlobReaderHere:
    """A range that is here. `size` of the blob, `offset` and `length` of the range, in bytes. For one thread."""

    def __init__(self, size: int, offset: int, length: int, store: Store | None, data: bytes = b"") -> None:
        self.size = size
        self.offset = offset
        self.length = length
        self._store = store
        self._data = data
        self._first = b""

    def begin(self) -> bool:
        """Whether the first piece has its sum, so that an answer may begin."""
        self._first = self._read(self.offset, min(PIECE, self.length))
        return len(self._first) == min(PIECE, self.length)

    def pieces(self) -> Iterator[bytes]:
        """Yield all of it, each piece compared with its sum. It ends early where one is wrong."""
        yield self._first
        at, end = self.offset + len(self._first), self.offset + self.length
        while at < end:
            wanted = min(PIECE, end - at)
            piece = self._read(at, wanted)
            yield piece
            if len(piece) < wanted:
                return
            at += wanted

    def _read(self, offset: int, length: int) -> bytes:
        if self._store is None:
            return self._data[offset - self.offset :][:length]
        buffer = bytearray(length)
        with contextlib.suppress(OSError):
            done = self._store.read_into(buffer, offset)
            return bytes(buffer[:done])
        return b""


def _of_section(layer: Layer, index: LoadedIndex, offset: int, length: int) -> BlobReaderHere | None:
    """Return a range of the index itself, which lies in the blob and is kept beside its bytes."""
    assert layer.index is not None  # noqa: S101 - these layers have one
    first = layer.index.offset
    end = offset + length if length else layer.size
    if not first <= offset < end <= first + len(index.section):
        return None
    return BlobReaderHere(layer.size, offset, end - offset, None, index.section[offset - first : end - first])


def _reader(
    entry: Entry, size: int, offset: int | None, length: int, held: contextlib.ExitStack
) -> BlobReaderHere | None:
    """Return a reader of a range, or of as much of its beginning as is there, if that is worth an answer.

    `size` of the blob, of which the entry may be the beginning.
    """
    first = offset or 0
    end = min(first + length, size) if length else size
    if not first < end <= entry.size or entry.sums_fd < 0:
        return None
    store = Store(
        entry.data_fd, entry.size, map_fd=entry.map_fd, sums_fd=entry.sums_fd, map_offset=MAP_OFFSET, timeout=1.0
    )
    held.callback(store.close)
    held.callback(store.stop)
    reached = _present(store, first, end)
    if reached < end and (offset is None or reached - first < SHORT_MIN):
        return None
    return BlobReaderHere(size, first, reached - first, store)


def _present(store: Store, first: int, end: int) -> int:
    """Return how far all is there from `first` on, before `end`."""
    if store.has(first, end - first):
        return end
    low, high = first // GRANULE, -(-end // GRANULE)  # all below `low` is there, not all below `high`
    while high - low > 1:
        middle = (low + high) // 2
        if store.has(first, middle * GRANULE - first):
            low = middle
        else:
            high = middle
    return max(first, low * GRANULE)
