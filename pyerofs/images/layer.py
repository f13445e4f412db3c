"""A layer of an image out of an EROFS image: what lies behind it in its blob, its digest, its descriptor."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, NamedTuple, Self

from ..ahead import cores
from ..erofs import chunk_index, dmverity
from ..erofs.compose import ROLE
from ..erofs.layer import CONTENT, HOT
from ..oci.raw_manifest import descriptor

MEDIA_TYPE = "application/vnd.erofs"
# What layers may be called, and whether they may be compressed then (CONTAINERS: which engine takes which).
LAYER_TYPES = {
    "vnd.erofs": True,
    "vnd.erofs.layer.v1": True,
    "vnd.oci.image.layer.v1.erofs": False,
}
# Of a layer that was converted: the ChainID (OCI image spec) of what it was made of, with all that lies below it, and
# the recipe. The same two give the same layer.
SOURCE_CHAIN = "io.pyerofs.source.chain-id"
SOURCE_RECIPE = "io.pyerofs.source.recipe"
MERGE_VERSION = 2  # of what merging gives: 2 leaves out what no file has any more
LAYOUT_VERSION = 1  # of what the same source and recipe give
_ZSTD = "+zstd"
_LOWER = "overlay-lower"
_PIECE = 1 << 20  # bytes
_HOT_LEVEL = 19  # of zstd: reading is as fast as at any other


class BuiltLayer(NamedTuple):
    """A layer in the file `path`. `diff_id`: the digest of what it decompresses to."""

    path: str
    digest: str
    diff_id: str
    size: int
    description: dict[str, Any]


class Recipe(NamedTuple):
    """How layers are made.

    `chunk_size` in bytes; `verity`: with a dm-verity tree; `level`: of zstd, 0 for none; `layer_type`: one of
    LAYER_TYPES; `merge`: all layers of an image in one; `trace`: digest of the trace by which their data are arranged.
    """

    chunk_size: int = chunk_index.CHUNK_SIZE
    verity: bool = False
    level: int = 0
    layer_type: str = "vnd.erofs"
    merge: bool = False
    trace: str = ""

    @property
    def media_type(self) -> str:
        return f"application/{self.layer_type}{_ZSTD if self.level else ''}"

    def __str__(self) -> str:
        """Return all that the bytes of a layer depend on."""
        how = f"layout={LAYOUT_VERSION} chunk-size={self.chunk_size}"
        compressed = f" zstd={self.level}" if self.level else ""
        hot = f" trace={self.trace}" if self.trace else ""
        return (
            how
            + compressed
            + (" verity" if self.verity else "")
            + (f" merge={MERGE_VERSION}" if self.merge else "")
            + hot
        )


class ImageSource:
    """An EROFS image as a stream, in parts that lie in different places. For one thread.

    `parts`: the bytes of each, and what gives them: `read(offset, length)`, fewer bytes only where the part is cut.
    `hot`: bytes of its beginning that a start reads, 0 where nothing is known of that.
    """

    def __init__(self, parts: Sequence[tuple[int, Callable[[int, int], bytes]]], hot: int = 0) -> None:
        self.hot = hot
        self.size = sum(size for size, _ in parts)
        self._parts = list(reversed(parts))
        self._at = 0  # in the last of them

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer only at the end. Raises what the parts raise."""
        found: list[bytes] = []
        while count and self._parts:
            size, read = self._parts[-1]
            piece = read(self._at, min(count, size - self._at)) if self._at < size else b""
            self._at += len(piece)
            count -= len(piece)
            if piece:
                found.append(piece)
            else:
                self._parts.pop()
                self._at = 0
        return found[0] if len(found) == 1 else b"".join(found)


def make_layer(
    image: ImageSource,
    path: str,
    recipe: Recipe,
    about: Mapping[str, str],
    progress: Callable[[int], None] = lambda done: None,
) -> BuiltLayer:
    """Make the image a layer, in the file `path`, in one pass. `about`: more annotations. Raises ImageError, OSError.

    `progress` gets the bytes of the image so far.

    Its index is put behind it, and before that its dm-verity tree; or its compressed chunks with their index take its
    place. With a tree, the image has whole blocks.
    """
    with open(path, "wb", buffering=0) as file, _Blob(file, recipe, image.hot if recipe.trace else 0) as blob:
        annotations = {ROLE: _LOWER, **about, **({HOT: str(image.hot)} if image.hot else {})}
        if recipe.verity:
            tree, root = dmverity.build(lambda count: blob.write(image.read(count), progress))
            annotations |= dmverity.describe(image.size, root)
            blob.write(tree)
        else:
            while piece := image.read(_PIECE):
                blob.write(piece, progress)
        return blob.finish(path, annotations)


class _Blob:
    """The blob of a layer as it is written, with all that is hashed of it on the way.

    Threads compress and hash chunks; the caller's hashes and writes what they have done, in order.
    """

    def __init__(self, file: IO[bytes], recipe: Recipe, hot: int) -> None:
        self._file, self._recipe, self._hot = file, recipe, hot
        self._deflate: Callable[[bytes], bytes] | None = None
        self._deflate_hot: Callable[[bytes], bytes] | None = None
        if recipe.level:
            from ..erofs.zstd import deflater  # deferred: needed here only

            self._deflate = self._deflate_hot = deflater(recipe.level)
            if hot:  # little, and fetched by all
                self._deflate_hot = deflater(max(recipe.level, _HOT_LEVEL))
        workers = cores()
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="pyerofs-chunk")
        self._ahead = 2 * workers + 1
        self._waiting: deque[tuple[int, Future[tuple[bytes, bytes]]]] = deque()
        self._entries: list[tuple[int, int, bytes]] = []
        self._taken = self._given = 0  # bytes of the image, and those of them in chunks
        self._start = self._size = 0  # of the image, and of the blob, so far
        self._rest = bytearray()  # the beginning of a chunk
        self._ready: list[bytes] = []  # what is to be written
        self._ready_size = 0
        self._blob, self._image = hashlib.sha256(), hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, data: bytes, progress: Callable[[int], None] = lambda done: None) -> bytes:
        """Take the image's next bytes, and return them; `progress` gets how many there were so far."""
        self._taken += len(data)
        progress(self._taken)
        if self._deflate is not None:
            self._image.update(data)
        view = memoryview(data)
        size = self._recipe.chunk_size
        if self._rest:
            missing = size - len(self._rest)
            self._rest += view[:missing]
            view = view[missing:]
            if len(self._rest) == size:
                self._put(bytes(self._rest))
                self._rest.clear()
        while len(view) >= size:
            self._put(bytes(view[:size]))
            view = view[size:]
        self._rest += view
        return data

    def _put(self, chunk: bytes) -> None:
        self._waiting.append((len(chunk), self._pool.submit(self._prepare, chunk, self._given < self._hot)))
        self._given += len(chunk)
        if len(self._waiting) > self._ahead:
            self._take()

    def _prepare(self, chunk: bytes, hot: bool) -> tuple[bytes, bytes]:
        deflate = self._deflate_hot if hot else self._deflate
        stored = chunk if deflate is None else deflate(chunk)
        return stored, hashlib.sha256(stored).digest()

    def _take(self) -> None:
        length, future = self._waiting.popleft()
        stored, digest = future.result()
        self._entries.append((self._size, self._start, digest))
        self._start += length
        self._append(stored)

    def _append(self, data: bytes) -> None:
        self._ready.append(data)
        self._ready_size += len(data)
        self._size += len(data)
        if self._ready_size >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._ready)
        self._ready.clear()
        self._ready_size = 0
        self._blob.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def finish(self, path: str, annotations: dict[str, str]) -> BuiltLayer:
        """Put the index behind it."""
        if self._rest:
            self._put(bytes(self._rest))
        while self._waiting:
            self._take()
        is_zstd = self._deflate is not None
        index = chunk_index.encode(chunk_index.ZSTD if is_zstd else chunk_index.NONE, self._start, self._entries)
        where = chunk_index.describe(self._size, index, frame=is_zstd)
        self._append(chunk_index.framed(index) if is_zstd else index)
        self._flush()
        digest = diff_id = f"sha256:{self._blob.hexdigest()}"
        if is_zstd:
            diff_id = annotations[CONTENT] = f"sha256:{self._image.hexdigest()}"
        about = descriptor(self._recipe.media_type, digest, self._size, {**annotations, **where})
        return BuiltLayer(path, digest, diff_id, self._size, about)
