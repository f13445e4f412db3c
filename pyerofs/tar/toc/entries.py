"""The entries of a TOC as eStargz and zstd:chunked have it: the same JSON, but for a few fields.

stargz-snapshotter, docs/estargz.md; containers/storage, pkg/chunked/internal/minimal. A file is an entry "reg", and an
entry "chunk" for each of its further chunks. A TOC has no lengths of what is stored: a member, or a chunk's frames, end
where the next begins, and the last one of a file at its endOffset, where it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..reader import FILE, TarEntry, show
from . import fields
from .json_stream import stream_items
from .model import ZEROS, Toc, TocEntry, TocError, TocPiece, Units

TOC_MAX = 150 << 20  # bytes, plain and compressed; what the formats' own tools take
ENTRIES_MAX = 10_000_000
VERSION = 1
LANDMARK = b".prefetch.landmark"
STARGZ_NAMES = frozenset((LANDMARK, b".no.prefetch.landmark", b"stargz.index.json"))  # the format's own files


@dataclass(slots=True)
class _OpenFile:
    """A file whose chunks are being read. `covered`: bytes of it that these make up so far."""

    entry: TarEntry
    hidden: bool
    digest: bytes
    end_offset: int
    pieces: list[TocPiece] = field(default_factory=list)
    covered: int = 0


def read_entries(read: Callable[[int], bytes], toc: Toc, end: int, hidden: Container[bytes] = ()) -> Iterator[TocEntry]:
    """Yield the entries of the JSON that `read` gives, and complete `toc` on the way. Raises TocError.

    `end`: where in the blob the files' bytes end. `hidden`: names of the format's own, which are not the image's.
    """
    rest: dict[str, Any] = {}
    layout = _BlobOrder(toc.units, end)
    names: set[int] = set()
    file: _OpenFile | None = None
    count = 0
    for found in stream_items(read, "entries", rest):
        count += 1
        if count > ENTRIES_MAX:
            raise TocError(f"it has more than {ENTRIES_MAX} entries")
        if type(found) is not dict:
            raise TocError("it has something else than an object for an entry")
        kind = found.get("type")
        if kind == "chunk":
            if file is None or fields.text(found, "name") not in (b"", file.entry.name):
                raise TocError("it has a chunk that no file comes before")
            _add_chunk(layout, file, found)
            continue
        if file is not None:
            yield from _finished(layout, file)
            file = None
        if not isinstance(kind, str) or kind not in fields.KINDS:
            raise TocError(f"it has an entry of the unknown type {ascii(kind)[:40]}")
        entry = fields.tar_entry(found, fields.KINDS[kind])
        name = _plain_name(entry.name)
        number = hash(name)  # which takes less memory than the name, and differs for the same ones never
        if number in names:
            raise TocError(f"it has the name {show(name)} twice")
        names.add(number)
        if entry.kind == FILE and entry.size:
            digest, end_offset = fields.digest_of(found, "digest"), fields.number(found, "endOffset")
            file = _OpenFile(entry, name in hidden, digest, end_offset)
            _add_chunk(layout, file, found)
            if file.hidden and name == LANDMARK:
                toc.landmark = fields.number(found, "offset")
        elif name not in hidden:
            yield TocEntry(entry)
    if file is not None:
        yield from _finished(layout, file)
    layout.close(end)
    if rest.get("version") != VERSION or type(rest["version"]) is not int:
        raise TocError("it is of another version than 1")


def _add_chunk(layout: _BlobOrder, file: _OpenFile, found: dict[str, Any]) -> None:
    """Add what an entry says of the bytes of a file, which must begin where those that are known end."""
    pieces, size = file.pieces, file.entry.size
    at = fields.number(found, "chunkOffset")
    length = fields.number(found, "chunkSize") or size - at
    if at != file.covered or not 0 < length <= size - at:
        raise TocError(f"its chunks do not make up the file {file.entry}")
    file.covered += length
    offset = fields.number(found, "offset")
    kind = found.get("chunkType")
    if kind == "zeros":
        layout.skip(offset)
        pieces.append(TocPiece(ZEROS, 0, length, b""))
        return
    if kind:
        raise TocError(f"it has a chunk of the unknown type {ascii(kind)[:40]}")
    digest = fields.digest_of(found, "chunkDigest")
    if length == size:
        if digest and file.digest and digest != file.digest:
            raise TocError(f"it has two digests of the file {file.entry}")
        digest = digest or file.digest
    if not digest:
        raise TocError(f"it has no digest of a chunk of the file {file.entry}")
    inner = fields.number(found, "innerOffset")
    pieces.append(TocPiece(layout.add(offset, inner, length, used=not file.hidden), inner, length, digest))


def _finished(layout: _BlobOrder, file: _OpenFile) -> Iterator[TocEntry]:
    if file.covered != file.entry.size:
        raise TocError(f"its chunks do not make up the file {file.entry}")
    if file.end_offset:
        layout.close(file.end_offset)
    if not file.hidden:
        yield TocEntry(file.entry, tuple(file.pieces), file.digest)


def _plain_name(name: bytes) -> bytes:
    """Return the name as others of the same file are: without what says nothing."""
    if name.startswith((b"/", b"./")) or name.endswith((b"/", b".")) or b"//" in name or b"/./" in name:
        return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))
    return name


class _BlobOrder:
    """Puts chunks into units, in the order of the blob."""

    def __init__(self, units: Units, limit: int) -> None:
        self._units, self._limit = units, limit
        self._start = -1  # of the unit that is open; -1: none
        self._plain = 0
        self._used = False
        self._free = 0  # nothing that comes may begin before this

    def add(self, offset: int, inner: int, length: int, *, used: bool) -> int:
        """Add a chunk to the unit at `offset`; return the number that this unit will have if it is used at all."""
        if offset == self._start and inner:
            if inner < self._plain:
                raise TocError("it has chunks that overlap")
        else:
            self.skip(offset)
            self._start, self._free = offset, offset + 1
            self._used = False
        self._plain = inner + length
        self._used |= used
        return len(self._units)

    def skip(self, offset: int) -> None:
        """Note that something begins at `offset`, so that what is in front of it ends."""
        if not self._free <= offset < self._limit:
            raise TocError("its offsets do not rise, or lie outside the layer")
        self.close(offset)
        self._free = offset + 1

    def close(self, end: int) -> None:
        """End the unit that is open, if there is one, at `end`."""
        if not self._free <= end <= self._limit:
            raise TocError("its offsets do not rise, or lie outside the layer")
        if self._start >= 0 and self._used:
            self._units.add(self._start, end - self._start, self._plain)
        self._start, self._free = -1, end
