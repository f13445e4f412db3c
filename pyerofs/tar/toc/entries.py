"""The entries of a TOC as eStargz and zstd:chunked have it: the same JSON, but for a few fields.

stargz-snapshotter, docs/estargz.md; containers/storage, pkg/chunked/internal/minimal. A file is an entry "reg", and an
entry "chunk" for each of its further chunks. A TOC has no lengths of what is stored: a member, or a chunk's frames, end
where the next begins, and the last one of a file at its endOffset, where it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any

from ..reader import TarEntry, show
from . import fields
from .json_stream import stream_items
from .keys import LANDMARK
from .model import ZEROS, Toc, TocEntry, TocError, TocPiece, Units

TOC_MAX = 150 << 20  # bytes, plain and compressed; what the formats' own tools take
ENTRIES_MAX = 10_000_000
VERSION = 1
_DISORDER = "its offsets do not rise, or lie outside the layer"


def read_entries(read: Callable[[int], bytes], toc: Toc, end: int, hidden: Container[bytes] = ()) -> Iterator[TocEntry]:
    """Yield the entries of the JSON that `read` gives, and complete `toc` on the way. Raises TocError.

    `end`: where in the blob the files' bytes end. `hidden`: names of the format's own, which are not the image's.
    """
    rest: dict[str, Any] = {}
    layout = _BlobOrder(toc.units, end)
    names: set[int] = set()
    file: _OpenFile | None = None
    for found in stream_items(read, "entries", rest):
        if type(found) is not dict:
            raise TocError("it has something else than an object for an entry")
        if file is not None:
            if file.add(layout, found):
                continue
            if (done := file.finish(layout)) is not None:
                yield done
            file = None
        entry = fields.tar_entry(found)
        name = _plain_name(entry.name)
        number = hash(name)  # takes less memory than the name; two names with one hash only cost the lazy way
        if number in names:
            raise TocError(f"it has the name {show(name)} twice")
        names.add(number)
        if len(names) > ENTRIES_MAX:
            raise TocError(f"it has more than {ENTRIES_MAX} entries")
        shown = name not in hidden
        if entry.size:
            file = _OpenFile(entry, found, shown)
            file.add_first(layout, found)
            if not shown and name == LANDMARK:
                toc.landmark = fields.number(found, "offset")
        elif shown:
            yield TocEntry(entry)
    if file is not None and (done := file.finish(layout)) is not None:
        yield done
    layout.close(end)
    if rest.get("version") != VERSION or type(rest["version"]) is not int:
        raise TocError("it is of another version than 1")


class _OpenFile:
    """A file with content, whose chunks are being read. `shown`: it is the image's, and not the format's."""

    __slots__ = ("_covered", "_digest", "_end", "_entry", "_pieces", "_shown")

    def __init__(self, entry: TarEntry, found: fields.Fields, shown: bool) -> None:
        self._entry = entry
        self._shown = shown
        self._digest = found.get("digest") or ""
        self._end = fields.number(found, "endOffset")
        self._pieces: list[TocPiece] = []
        self._covered = 0  # bytes of it that these make up

    def add(self, layout: _BlobOrder, found: fields.Fields) -> bool:
        """Add what an entry says, if it is of a further chunk of this file; whether it is."""
        if found.get("type") != "chunk":
            return False
        if fields.text(found, "name") not in (b"", self._entry.name):
            raise TocError(f"it has a chunk of another file than {self._entry}, which comes before it")
        self.add_first(layout, found)
        return True

    def add_first(self, layout: _BlobOrder, found: fields.Fields) -> None:
        """Add what an entry says of the bytes of the file, which must begin where those that are known end."""
        get, size, at = found.get, self._entry.size, self._covered
        length = fields.number(found, "chunkSize") if "chunkSize" in found else 0
        length = length or size - at
        if (get("chunkOffset") or 0) != at or not 0 < length <= size - at:
            raise TocError(f"its chunks do not make up the file {self._entry}")
        self._covered = at + length
        offset = fields.number(found, "offset")
        kind = get("chunkType")
        if kind == "zeros":
            layout.skip(offset)
            self._pieces.append(TocPiece(ZEROS, 0, length, b""))
            return
        if kind:
            raise TocError(f"it has a chunk of the unknown type {ascii(kind)[:40]}")
        digest, whole = get("chunkDigest") or "", self._digest
        if length == size and digest != whole:
            if digest and whole:
                raise TocError(f"it has two digests of the file {self._entry}")
            digest = digest or whole
        if not digest:
            raise TocError(f"it has no digest of a chunk of the file {self._entry}")
        inner = fields.number(found, "innerOffset") if "innerOffset" in found else 0
        unit = layout.add(offset, inner, length, used=self._shown)
        self._pieces.append(TocPiece(unit, inner, length, fields.sha256(digest)))

    def finish(self, layout: _BlobOrder) -> TocEntry | None:
        """Return the file as it is; None where it is not to be shown."""
        if self._covered != self._entry.size:
            raise TocError(f"its chunks do not make up the file {self._entry}")
        if self._end:
            layout.close(self._end)
        if not self._shown:
            return None
        first = self._pieces[0]
        whole = first.digest if first.length == self._covered else fields.sha256(self._digest) if self._digest else b""
        return TocEntry(self._entry, tuple(self._pieces), whole)


def _plain_name(name: bytes) -> bytes:
    """Return the name as others of the same file are: without what says nothing."""
    name = name.rstrip(b"/")
    if b"//" in name or b"/." in name or name[:1] in b"/.":
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
            self._used |= used
        else:
            self.skip(offset)
            self._start = offset
            self._used = used
        self._plain = inner + length
        return len(self._units)

    def skip(self, offset: int) -> None:
        """Note that something begins at `offset`, so that what is in front of it ends."""
        self.close(offset)
        if offset >= self._limit:
            raise TocError(_DISORDER)
        self._free = offset + 1

    def close(self, end: int) -> None:
        """End the unit that is open, if there is one, at `end`."""
        if not self._free <= end <= self._limit:
            raise TocError(_DISORDER)
        if self._start >= 0:
            if self._used:
                self._units.add(self._start, end - self._start, self._plain)
            self._start = -1
        self._free = end
