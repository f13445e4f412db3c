"""A source for an entry that is its giver's, and may become shared while it is open.

As long as it is the giver's own, what comes is put there as it is. Once all of it has been hashed, and others who ask
other givers read it too, what it lacks (bytes that were damaged, and found so) is put there only if it has the hash
that it had then.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..errors import CorruptError, SpoiledError
from .base import SourceWrapper
from .chunked import ChunkReader
from .index_file import own_index

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..cache.entry import Entry
    from ..erofs.chunk_index import ChunkIndex
    from .base import Source

    Sink = Callable[[int, bytes], bool]

PASSES = 4  # that bring nothing; each that is wrong is followed by another mirror, where there is one

TICK = 0.02  # seconds: what the times of files may lag behind


class CheckedSource(SourceWrapper):
    """Any thread. Source and entry stay the caller's."""

    def __init__(self, source: Source, entry: Entry):
        super().__init__(source)
        self._entry = entry
        self._index: ChunkIndex | None = None

    def read_range(
        self, offset: int, length: int, sink: Sink, *, whole: Callable[[], None], cancel: Callable[[], bool]
    ) -> None:
        if self._index is None and self._entry.is_marked_verified():
            self._index = own_index(self._entry.hashes(), self.size)
        if self._index is not None:
            self._read_checked(self._index, offset, length, sink, whole, cancel)
            return
        if self._entry.is_marked_verified():
            self._entry.unmark_verified()  # it has no hashes: it must not be believed from now on
        last = 0.0

        def given(at: int, piece: bytes) -> bool:
            nonlocal last
            more = sink(at, piece)
            last = time.time()
            return more

        try:
            self._source.read_range(offset, length, given, whole=whole, cancel=cancel)
        finally:
            # One that another process has made meanwhile may be for other bytes than these.
            marked = self._entry.marked_at() if last else None
            if marked is not None and marked < last + TICK:
                self._entry.unmark_verified()

    def _read_checked(
        self,
        index: ChunkIndex,
        offset: int,
        length: int,
        sink: Sink,
        whole: Callable[[], None],
        cancel: Callable[[], bool],
    ) -> None:
        reader = ChunkReader(index, offset, offset + length, sink, whole, lambda number, content: None)
        passes = 0
        while True:
            first, end = reader.begin()
            try:
                self._source.read_range(first, end - first, reader.piece, whole=reader.whole, cancel=cancel)
                return
            except CorruptError:
                passes = 0 if reader.has_begun() else passes + 1
                if passes == PASSES:
                    raise
            except SpoiledError as e:  # what has gone on was right all the same
                raise CorruptError(str(e)) from None
