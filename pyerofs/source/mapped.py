"""A tar layer that is read by its chunk map: each piece is checked before any byte of it goes on.

The registry's bytes are fetched by units, each of which is inflated by itself and gives all its pieces. One request
covers many units.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..core import GRANULE
from ..erofs.layer import Storage
from ..errors import CorruptError, ImageError
from .recent import Recent
from .unit_reader import InflatedUnit, UnitReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..erofs.chunk_map import ChunkMap
    from ..erofs.layer import Layer
    from .base import Spare
    from .blobs import BlobReader, Connections

    Sink = Callable[[int, bytes], bool]

PASSES = 2  # over all mirrors; a byte can also be spoiled on its way
_LOOK = 0.2  # seconds between two looks at cancel


class MappedSource:
    """A source that reads a layer by its chunk map. Thread-safe. Owns the connections.

    `size`: bytes of the device that the map makes of the layer. `spare` gets what came with what was asked for, checked
    as well; None: nobody wants it.
    """

    spare: Spare | None = None

    def __init__(self, name: str, layer: Layer, blob: BlobReader, connections: Connections, chunks: ChunkMap):
        self.name = name
        self.digest = layer.digest
        self.layer = layer.number
        self.origin = layer
        self.size = chunks.size
        # Up to eStargz' landmark, or what SOCI's prefetch artifact names.
        hot = ((0, chunks.prefix),) if chunks.prefix else chunks.hot
        self.storage = Storage(layer.verified_key, True, hot=hot)
        self.connections = connections
        self.chunks = chunks
        self._blob = blob
        blob.checked = True
        self._recent: Recent[InflatedUnit] = Recent()
        self._busy = _BusyUnits()

    def read_range(
        self, offset: int, length: int, sink: Sink, *, whole: Callable[[], None], cancel: Callable[[], bool]
    ) -> None:
        reader = UnitReader(self.chunks, offset, offset + length, sink, whole, self._keep)
        passes = 0
        while reader.advance() and not cancel():
            kept = self._recent.get(reader.unit)
            if kept is not None:
                try:
                    reader.give(kept)
                except CorruptError:  # a piece of it that nobody has wanted before: another mirror may have it right
                    self._recent.drop(reader.unit)
                reader.flush()
                continue
            if self._busy.wait(reader.unit, cancel):
                continue
            held = self._busy.take(range(reader.unit, reader.last_unit() + 1))
            if not held:
                continue
            try:
                first, end = reader.begin(held.stop - 1)
                self._blob.read_range(
                    first, end - first, reader.piece, whole=reader.whole, cancel=cancel, begun=reader.has_begun
                )
            except CorruptError:
                # What came before it was good. The rest is asked for elsewhere, as long as that brings something.
                passes = 0 if reader.has_begun() else passes + 1
                if passes == PASSES:
                    raise
            finally:
                self._busy.drop(held)

    def _keep(self, number: int, unit: InflatedUnit, reader: UnitReader) -> None:
        """Keep a unit of which more is known than the reader wants, for those who want that."""
        pieces = self.chunks.of_unit(number)
        first, end = self.chunks.stretch(pieces)
        if first < reader.first or end > reader.end:
            self._recent.put(number, unit)
            self._busy.drop(range(number, number + 1))
            if self.spare is not None:
                reader.flush()  # what is waited for first
                self._give_spare(self.spare, pieces, unit, first, end)
        else:
            self._busy.drop(range(number, number + 1))

    def _give_spare(self, spare: Spare, pieces: range, unit: InflatedUnit, first: int, end: int) -> None:
        data = bytearray(end - first)
        for number in pieces:
            piece = self.chunks.piece(number)
            try:
                data[piece.start - first : piece.end - first] = unit.piece(self.chunks, number)
            except ImageError:
                return  # who reads it will hear of it
        begin = -(-first // GRANULE) * GRANULE
        until = end if end == self.size else end // GRANULE * GRANULE
        if begin < until:
            spare(begin, bytes(memoryview(data)[begin - first : until - first]))

    def content(self) -> str | None:
        return None

    def complete(self) -> None:
        self._recent.clear()

    def close(self) -> None:
        self.connections.close()


class _BusyUnits:
    """Units that a thread is fetching: another one that wants them waits. Thread-safe.

    Who waits has none itself, so that no two wait for each other.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._units: set[int] = set()

    def wait(self, number: int, cancel: Callable[[], bool]) -> bool:
        """Wait until no thread fetches the unit. False: none does."""
        with self._changed:
            if number not in self._units:
                return False
            while number in self._units and not cancel():
                self._changed.wait(_LOOK)
            return True

    def take(self, numbers: range) -> range:
        """Take the first of these units, and those that follow it up to one that another thread has."""
        with self._changed:
            end = next((number for number in numbers if number in self._units), numbers.stop)
            taken = range(numbers.start, end)
            self._units.update(taken)
            return taken

    def drop(self, numbers: range) -> None:
        with self._changed:
            self._units.difference_update(numbers)
            self._changed.notify_all()
