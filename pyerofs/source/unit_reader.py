"""A sink for the bytes of a tar layer's blob, which gives bytes of its device, as its chunk map has them, checked."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from ..erofs.zstd import inflate_start
from ..errors import CorruptError, ImageError
from ..tar.toc import span

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..erofs.chunk_map import ChunkMap

    Sink = Callable[[int, bytes], bool]

BRIDGE = 64 << 10  # bytes of the blob that nobody wants, but that cost less than a second request
TRIM_MIN = 32 << 10  # stored bytes of a unit at the end of a run that may be left out: see UnitReader.last_unit
FILE_RUN = 2 << 20  # bytes: longer runs are for readers who have gone on from file to file
_PUT = 256 << 10  # bytes that are given to the sink at once, or a piece more


class InflatedUnit:
    """The plain bytes of a unit, and which of its pieces have been checked. Any thread."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        self._good: set[int] = set()

    def __len__(self) -> int:
        return len(self.plain)

    def piece(self, chunks: ChunkMap, number: int) -> memoryview:
        """Return a piece of it, checked. Raises ImageError."""
        piece = chunks.piece(number)
        data = memoryview(self.plain)[piece.offset : piece.offset + piece.length]
        if number not in self._good:
            chunks.check_piece(number, data)
            self._good.add(number)
        return data


def inflate_unit(chunks: ChunkMap, number: int, stored: bytes) -> InflatedUnit:
    """Return the unit whose bytes these are. Raises ImageError."""
    chunks.check_stored(number, stored)
    return InflatedUnit(_CODECS[chunks.codec](chunks, number, stored, chunks.unit(number).plain))


def _gzip(chunks: ChunkMap, number: int, stored: bytes, length: int) -> bytes:
    try:
        plain = zlib.decompressobj(31).decompress(stored, length)
    except zlib.error as error:
        raise ImageError(f"a gzip member is corrupt: {error}") from None
    if len(plain) != length:
        raise ImageError(f"a gzip member holds {len(plain)} bytes instead of {length}")
    return plain


def _zstd(chunks: ChunkMap, number: int, stored: bytes, length: int) -> bytes:
    return inflate_start(stored, length)


def _span(chunks: ChunkMap, number: int, stored: bytes, length: int) -> bytes:
    bits, window = chunks.checkpoint(number)
    return span.inflate_unit(stored, length, bits, window)


def _none(chunks: ChunkMap, number: int, stored: bytes, length: int) -> bytes:
    return stored[:length]


_CODECS: dict[str, Callable[[ChunkMap, int, bytes, int], bytes]] = {
    "gzip": _gzip,
    "zstd": _zstd,
    "span": _span,
    "none": _none,
}


def device_contents(chunks: ChunkMap, blob: bytes) -> bytes:
    """Return all bytes of the device, out of all of the blob. Raises ImageError."""
    found = bytearray(chunks.size)
    number = 0
    for at in range(chunks.units):
        offset, stored, _ = chunks.unit(at)
        pieces = chunks.of_unit(at)
        unit = inflate_unit(chunks, at, blob[offset : offset + stored]) if pieces else None
        for number in pieces:
            assert unit is not None  # noqa: S101 - it has pieces
            piece = chunks.piece(number)
            found[piece.start : piece.end] = unit.piece(chunks, number)
    return bytes(found)


class UnitReader:
    """Gives device bytes [first, end) to a sink, in order. For one thread.

    `unit`: the one that is wanted next. `keep` gets each unit that has come, when its pieces have gone on.
    """

    def __init__(
        self,
        chunks: ChunkMap,
        first: int,
        end: int,
        sink: Sink,
        whole: Callable[[], None],
        keep: Callable[[int, InflatedUnit, UnitReader], None],
    ):
        self._chunks = chunks
        self.first = self._at = first  # _at: what is to be given next
        self.end = self._trimmed(first, end)
        self._sink = sink
        self._whole = whole
        self._keep = keep
        self.unit = -1
        self._number = chunks.find(first)  # of the piece that is next
        self._out = bytearray()  # given, but for the sink's call
        self._wanted = True
        self._begun = False
        self._buffer = bytearray()  # of the blob, from _buffer_at on
        self._start = self._arrived = self._buffer_at = 0
        self._last = -1

    def _trimmed(self, first: int, end: int) -> int:
        """Leave out what nobody may want: whoever does asks again, from there on.

        That is, of a run that begins within a file, and is not long enough to be one of a reader of many files, the
        files behind it; and the beginning of a last file where it would cost much more than it gives.
        """
        chunks = self._chunks
        begin = chunks.find(first)
        if end - first <= FILE_RUN and begin < chunks.pieces:
            number = begin
            if chunks.piece(number).start < first or not chunks.piece(number).begins:
                while (number := number + 1) < chunks.pieces and (found := chunks.piece(number)).start < end:
                    if found.begins:
                        return found.start
        number = chunks.find(end - 1)
        if number == chunks.pieces or number <= chunks.find(first):
            return end
        piece = chunks.piece(number)
        if piece.start >= end or not piece.begins or piece.unit == chunks.piece(chunks.find(first)).unit:
            return end
        little = (end - piece.start) * 2 < piece.length
        return piece.start if little and chunks.unit(piece.unit).stored > TRIM_MIN else end

    def advance(self) -> bool:
        """Give the zeros that are next, and find the unit behind them. False: there is nothing more to do."""
        chunks = self._chunks
        start = chunks.piece(self._number).start if self._number < chunks.pieces else self._chunks.size
        if self._at < start:
            self._put(bytes(min(start, self.end) - self._at))
        if self._at >= self.end:
            self.flush()
            return False
        self.unit = chunks.piece(self._number).unit
        return self._wanted

    def give(self, unit: InflatedUnit) -> None:
        """Give the pieces of the unit that is next. Raises CorruptError."""
        chunks = self._chunks
        while self._number < chunks.pieces and self._at < self.end:
            piece = chunks.piece(self._number)
            if piece.unit != self.unit:
                break
            if piece.start > self._at:
                self._put(bytes(min(piece.start, self.end) - self._at))
                if self._at >= self.end:
                    break
            try:
                data = unit.piece(chunks, self._number)
            except ImageError as error:
                self.flush()
                raise CorruptError(str(error), piece.end) from None
            self._put(data[self._at - piece.start : self.end - piece.start])
            if self._at == piece.end:
                self._number += 1

    def _put(self, data: bytes | memoryview) -> None:
        self._begun = True
        self._out += data
        self._at += len(data)
        if len(self._out) >= _PUT:
            self.flush()

    def flush(self) -> None:
        """Let the sink have what has been given."""
        if self._out and self._wanted:
            data = bytes(self._out)
            self._out.clear()
            self._wanted = self._sink(self._at - len(data), data)

    def last_unit(self) -> int:
        """Return the last unit of those that one request should bring, beginning with `unit`."""
        chunks = self._chunks
        last = chunks.find(self.end - 1)
        if last == chunks.pieces or chunks.piece(last).start >= self.end:
            last -= 1
        found = self.unit
        end = chunks.unit(found).offset + chunks.unit(found).stored
        for number in range(self._number, last + 1):
            unit = chunks.piece(number).unit
            if unit == found:
                continue
            offset, stored, _ = chunks.unit(unit)
            if offset - end > BRIDGE:
                break
            found, end = unit, offset + stored
        return found

    def begin(self, last: int) -> tuple[int, int]:
        """Begin a request for the units up to `last`; return the blob's bytes, first and end, that it is to ask for.

        Nothing of an answer to that has been used yet.
        """
        self.flush()
        self._begun = False
        self._last = last
        self._start = self._chunks.unit(self.unit).offset
        self._restart()
        found = self._chunks.unit(last)
        return self._start, found.offset + found.stored

    def _restart(self) -> None:
        self._buffer.clear()
        self._arrived = self._buffer_at = self._start

    def has_begun(self) -> bool:
        """Whether anything of the answer has gone on."""
        return self._begun

    def whole(self) -> None:
        """Note that the whole blob comes, from its beginning on, and so all of the device."""
        self._whole()
        self._begun = True
        self._out.clear()
        self.first = self._at = 0
        self.end = self._chunks.size
        self._number = 0
        self._start = 0
        self._last = self._chunks.units - 1
        self._restart()
        self.advance()

    def piece(self, at: int, data: bytes) -> bool:
        """Take the blob's bytes at `at`. Raises CorruptError."""
        if at != self._arrived:  # another mirror begins anew; nothing of the first one's answer has gone on
            self._restart()
            if at != self._start:
                raise ValueError("a piece is out of order")
        self._buffer += data
        self._arrived = at + len(data)
        chunks = self._chunks
        while self._at < self.end and self._wanted and self.unit <= self._last:
            offset, stored, _ = chunks.unit(self.unit)
            if self._buffer_at < offset:
                step = min(offset - self._buffer_at, len(self._buffer))
                del self._buffer[:step]
                self._buffer_at += step
            if offset + stored > self._arrived:
                break
            begin = offset - self._buffer_at
            self._take(bytes(self._buffer[begin : begin + stored]))
            if not self.advance():
                break
        self.flush()
        return self._wanted

    def _take(self, stored: bytes) -> None:
        number = self.unit
        try:
            unit = inflate_unit(self._chunks, number, stored)
        except ImageError as error:
            self.flush()
            pieces = self._chunks.of_unit(number)
            raise CorruptError(str(error), self._chunks.piece(pieces.stop - 1).end) from None
        self.give(unit)
        self._keep(number, unit, self)
