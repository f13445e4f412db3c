"""A layer that is read by its chunk index: each chunk is checked, and decompressed, before any byte of it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core import GRANULE
from ..erofs.chunk_index import NONE
from ..erofs.layer import Storage
from ..erofs.zstd import inflate
from ..errors import CorruptError, ImageError
from .recent import Recent

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..erofs.chunk_index import Chunk, ChunkIndex
    from ..erofs.layer import Layer
    from .blobs import BlobReader, Connections
    from .index_file import LoadedIndex

    Sink = Callable[[int, bytes], bool]

CHUNK_MAX = 32 << 20  # bytes: it is held in memory, by each fetch thread
PASSES = 2  # over all mirrors; a byte can also be spoiled on its way


class ChunkedSource:
    """A source that reads a layer by its chunk index.

    `size`: the image's, which the chunks cover, so that no byte of it is without one. Thread-safe. Owns the
    connections.
    """

    def __init__(
        self, name: str, layer: Layer, blob: BlobReader, connections: Connections, found: LoadedIndex, giver: str = ""
    ):
        self.name = name
        self.digest = layer.digest
        self.layer = layer.number
        self.origin = layer
        self.size = found.chunks.size
        verified = found.chunks.hash_size > 0
        align = _chunk_size(found.chunks)
        if verified:
            self.storage = Storage(layer.verified_key, True, found.section, align, hot=layer.hot_ranges)
        else:
            self.storage = Storage(
                layer.given_key(giver, by_index=True),
                section=found.section,
                align=align,
                shared=layer.shared_key(by_index=True),
                giver=giver,
                hot=layer.hot_ranges,
            )
        self._index = found.chunks
        self._blob = blob
        blob.checked = bool(found.chunks.hash_size)
        self.connections = connections
        self._recent: Recent[bytes] = Recent()

    def read_range(
        self, offset: int, length: int, sink: Sink, *, whole: Callable[[], None], cancel: Callable[[], bool]
    ) -> None:
        reader = ChunkReader(self._index, offset, offset + length, sink, whole, self._recent.put)
        while (kept := self._recent.get(reader.number)) is not None:
            if not reader.give(kept):
                return
        passes = 0
        while True:
            first, end = reader.begin()
            try:
                self._blob.read_range(
                    first, end - first, reader.piece, whole=reader.whole, cancel=cancel, begun=reader.has_begun
                )
                return
            except CorruptError:
                # What came before it was good. The rest is asked for elsewhere, as long as that brings something.
                passes = 0 if reader.has_begun() else passes + 1
                if passes == PASSES:
                    raise

    def content(self) -> str | None:
        return self.origin.content if self.origin.compressed and self.origin.content else None

    def complete(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        self.connections.close()


def _chunk_size(index: ChunkIndex) -> int:
    """Return the size that all chunks seem to have, judging by a few of them.

    A granule where they differ, or have none that could be kept to: it is an optimisation only.
    """
    count = len(index)
    size = index.chunk(0).length if count else 0
    if count < 2 or size % GRANULE or size > CHUNK_MAX:
        return GRANULE
    even = all(index.chunk(number).start == number * size for number in (count // 2, count - 1))
    return size if even else GRANULE


class ChunkReader:
    """A sink for a blob's bytes that gives image bytes [offset, end), checked, to another sink.

    `rest` gets the number and the content of a chunk of which only a part is wanted. For one thread.
    """

    def __init__(
        self,
        index: ChunkIndex,
        offset: int,
        end: int,
        sink: Sink,
        whole: Callable[[], None],
        rest: Callable[[int, bytes], None],
    ):
        self._index = index
        self._reached = offset
        self._end = end
        self._sink = sink
        self._whole = whole
        self._rest = rest
        self._begun = False
        self._start = self._at = 0
        self._pieces: list[bytes] = []  # of the chunk under way
        self._held = 0  # bytes in them
        self._begin_at(offset)

    @property
    def number(self) -> int:
        """Of the chunk that is wanted next; -1 when there is none."""
        return self._number if self._reached < self._end else -1

    def give(self, content: bytes) -> bool:
        """All of that chunk, checked. False: nothing more is wanted."""
        return self._pass_on(self._chunk, content) and self._reached < self._end

    def _begin_at(self, position: int) -> None:
        self._number = self._index.find(position)
        self._chunk = self._look(self._number)
        self._start = self._at = self._chunk.offset
        self._pieces, self._held = [], 0

    def _look(self, number: int) -> Chunk:
        chunk = self._index.chunk(number)
        if max(chunk.length, chunk.stored) > CHUNK_MAX:
            raw = self._index.compression == NONE
            way_out = "oci.verify=none reads it without that" if raw else "make the layer with smaller ones"
            raise ImageError(
                f"the chunk at {chunk.start} has {chunk.length} bytes, more than {CHUNK_MAX >> 20} MiB: "
                f"it is too large to be verified before it is read ({way_out})"
            )
        return chunk

    def begin(self) -> tuple[int, int]:
        """Return the blob's bytes, first and end, that hold what is still wanted.

        Nothing of an answer to that has been used yet.
        """
        self._begin_at(self._reached)
        self._begun = False
        last = self._index.chunk(self._index.find(self._end - 1))
        return self._start, last.offset + last.stored

    def has_begun(self) -> bool:
        """Whether anything of the answer has gone on."""
        return self._begun

    def whole(self) -> None:
        """Note that the whole blob comes, from its beginning on, and so the whole image."""
        self._whole()
        self._begun = True
        self._reached, self._end = 0, self._index.size
        self._begin_at(0)
        self._start = self._at = 0

    def piece(self, at: int, data: bytes) -> bool:
        """Take the blob's bytes at `at`. Raises CorruptError."""
        if at != self._at:  # another mirror begins anew; nothing of the first one's answer has gone on
            self._begin_at(self._reached)
            if at != self._start:
                raise ValueError("a piece is out of order")
        used = 0
        while used < len(data) and self._reached < self._end:
            chunk = self._chunk
            if self._at < chunk.offset:  # between the chunks of a compressed layer there may be anything
                step = min(chunk.offset - self._at, len(data) - used)
            else:
                step = min(chunk.stored - self._held, len(data) - used)
                self._pieces.append(data[used : used + step])
                self._held += step
            used += step
            self._at += step
            if self._held == chunk.stored:
                stored = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                if not self._pass_on(chunk, self._checked(chunk, stored)):
                    return False
        self._at = at + len(data)
        return True

    def _checked(self, chunk: Chunk, stored: bytes) -> bytes:
        try:
            chunk.verify(stored)
            return stored if self._index.compression == NONE else inflate(stored, chunk.length)
        except ImageError as e:
            raise CorruptError(str(e), chunk.start + chunk.length) from None

    def _pass_on(self, chunk: Chunk, content: bytes) -> bool:
        first, end = max(chunk.start, self._reached), min(chunk.start + chunk.length, self._end)
        self._begun = True
        self._reached = end
        if end - first < chunk.length:
            self._rest(self._number, content)
        self._number += 1
        self._pieces, self._held = [], 0
        if end < self._end:
            self._chunk = self._look(self._number)
        return self._sink(first, content[first - chunk.start : end - chunk.start])
