"""A zTOC, SOCI's table of contents of a tar or tar.gz layer, which lies beside the layer.

soci-snapshotter, ztoc/fbs/ztoc.fbs, ztoc/compression/gzip_zinfo.c. It names the files with their places in the tar
archive, and cuts the blob into spans, each with the SHA-256 of its stored bytes; of a gzip stream also with a
checkpoint from which it can be inflated. What is read comes from a stranger, and TocError is all that is raised.
"""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator

from ...core import WINDOW
from ..reader import BLOCK, CHARACTER, FILE, HARD_LINK, SYMLINK, TarEntry, show
from . import fields
from .flatbuffer import OFFSET, FlatBuffer
from .model import Toc, TocEntry, TocError, TocPiece, Units
from .span import Checkpoint, pack_window

ZTOC_MAX = 512 << 20  # bytes; what is held in memory at once
PREFETCH_MAX = 1 << 20  # bytes of a prefetch artifact
ENTRIES_MAX = 10_000_000
GZIP, UNCOMPRESSED = 1, 2  # compression_algorithm
NAME = "SOCI"

# Tables and their fields, as ztoc.fbs and zinfo.fbs have them.
ZTOC = (OFFSET, OFFSET, "q", "q", OFFSET, OFFSET)
CONTENTS = (OFFSET,)
COMPRESSION = ("b", "i", OFFSET, OFFSET)
FILE_METADATA = (
    *(OFFSET, OFFSET, "q", "q", OFFSET, "q", "I", "I"),
    *(OFFSET, OFFSET, OFFSET, "q", "q", OFFSET),
)
XATTR = (OFFSET, OFFSET)
TAR_ZINFO = ("i", "q", "q")

ZINFO_HEAD = struct.Struct("<iq")  # of a zinfo: how many checkpoints, and bytes of a span
CHECKPOINT = struct.Struct(f"<qqB{WINDOW}s")  # places in the blob and in the archive, bits, window
TAR_BLOCK = 512
XATTR_RECORD = b"SCHILY.xattr."

_FIRST_PLACE = 10  # bytes of a gzip header without a name: version 1 of a zinfo has no first checkpoint
_SPARSE = b"GNU.sparse."
_NO_XATTRS: dict[bytes, bytes] = {}
_GZIP_MAGIC = b"\x1f\x8b"


def unpack_ztoc(data: bytes) -> bytes:
    """Return a zTOC that may be compressed with gzip, as `pyerofs index` stores it. Raises TocError."""
    if not data.startswith(_GZIP_MAGIC):
        return data
    member = zlib.decompressobj(31)
    try:
        plain = member.decompress(data, ZTOC_MAX)
    except zlib.error:
        raise TocError("it cannot be decompressed") from None
    if not member.eof:
        raise TocError("it is cut short, or too large")
    return plain


def read_ztoc(data: bytes, size: int, prefetch: bytes = b"") -> Toc:
    """Read the zTOC of a blob of `size` bytes. `data` has been verified, as `prefetch`, the prefetch artifact of it.

    Raises TocError.
    """
    if len(data) > ZTOC_MAX:
        raise TocError(f"it has {len(data)} bytes; at most {ZTOC_MAX} are taken")
    buffer = FlatBuffer(data)
    _, _, compressed, archive, contents, compression = buffer.table(buffer.root(), ZTOC)
    if not contents or not compression:
        raise TocError("it has no table of files, or of spans")
    if compressed != size:
        raise TocError(f"it is of a layer of {compressed} bytes, not of {size}")
    if not 0 < archive <= fields.SIZE_MAX:
        raise TocError(f"it is of an archive of {archive} bytes")
    algorithm, last, digests, state = buffer.table(compression, COMPRESSION)
    if not digests or not state:
        raise TocError("it has no spans")
    if algorithm in (0, GZIP):  # which need not be written, as the default
        units = Units("span", "stored")
        spans = _zinfo(buffer.string(state))
    elif algorithm == UNCOMPRESSED:
        units = Units("none", "stored")
        spans = _tar_zinfo(buffer.string(state), size, archive)
    else:
        raise TocError(f"its layer is compressed in a way that is not known here ({algorithm})")
    if not len(spans) == buffer.count(digests) == last + 1:
        raise TocError("its numbers of spans do not agree")
    stored_digests = [fields.sha256(buffer.string(place).decode("latin-1")) for place in buffer.pointed(digests)]
    toc = Toc(NAME, units)
    layout = _Layout(units, spans, stored_digests, size, archive)
    toc.prefetch = layout.prefetched(prefetch) if prefetch else []
    (files,) = buffer.table(contents, CONTENTS)
    toc.entries = _entries(buffer, files, layout, archive)
    return toc


def _zinfo(state: bytes) -> list[Checkpoint]:
    """Read the checkpoints of a gzip stream."""
    if len(state) < ZINFO_HEAD.size:
        raise TocError("its checkpoints are cut short")
    count, _ = ZINFO_HEAD.unpack_from(state)
    found = []
    if len(state) == ZINFO_HEAD.size + (count - 1) * CHECKPOINT.size:
        found = [Checkpoint(_FIRST_PLACE, 0, 0, b"")]
    elif len(state) != ZINFO_HEAD.size + count * CHECKPOINT.size:
        raise TocError("its checkpoints are cut short")
    for place, plain, bits, window in CHECKPOINT.iter_unpack(memoryview(state)[ZINFO_HEAD.size :]):
        if not (place > 0 and 0 <= bits <= 7):
            raise TocError("it has a checkpoint that cannot be")
        # One at the beginning of the archive refers to nothing.
        found.append(Checkpoint(place - bool(bits), plain, bits, pack_window(window) if plain else b""))
    return found


def _tar_zinfo(state: bytes, size: int, archive: int) -> list[Checkpoint]:
    """Cut an archive that is not compressed."""
    buffer = FlatBuffer(state)
    _, spacing, total = buffer.table(buffer.root(), TAR_ZINFO)
    if total != size or archive > size:
        raise TocError("its sizes do not agree")
    if spacing <= 0 or size // spacing > ZTOC_MAX:
        raise TocError(f"its spans have {spacing} bytes")
    return [Checkpoint(at, at, 0, b"") for at in range(0, size, spacing)]


class _Layout:
    """The spans as units, and where in them a part of the archive is. Raises TocError for what cannot be."""

    def __init__(self, units: Units, spans: list[Checkpoint], digests: list[bytes], size: int, archive: int) -> None:
        if not spans or spans[0].plain:
            raise TocError("its spans do not begin with the archive")
        self._ends = array("Q")  # in the blob, of all spans; those without content are no units
        self._begins = array("Q")
        self._starts = array("Q")  # in the archive, of the units
        self._end = archive
        for number, (span, digest) in enumerate(zip(spans, digests, strict=True)):
            following = spans[number + 1] if number + 1 < len(spans) else Checkpoint(size, archive, 0, b"")
            end = following.offset + bool(following.bits)
            # Behind the archive's end there may be anything.
            length = min(following.plain, archive) - span.plain
            if (following.plain < span.plain and number + 1 < len(spans)) or not span.offset < end <= size:
                raise TocError("its spans do not rise")
            self._begins.append(span.offset)
            self._ends.append(end)
            if length > 0:
                self._starts.append(span.plain)
                bits, window = (span.bits, span.window) if units.codec == "span" else (0, b"")
                units.add(span.offset, end - span.offset, length, digest, bits=bits, window=window)

    def pieces(self, start: int, length: int) -> tuple[TocPiece, ...]:
        """Return where a part of the archive is, which lies in it."""
        found = []
        number = bisect_right(self._starts, start) - 1
        while length:
            end = self._starts[number + 1] if number + 1 < len(self._starts) else self._end
            taken = min(length, end - start)
            found.append(TocPiece(number, start - self._starts[number], taken, b""))
            start += taken
            length -= taken
            number += 1
        return tuple(found)

    def prefetched(self, artifact: bytes) -> list[tuple[int, int]]:
        """Return the parts of the blob, begin and end, that a prefetch artifact names, the most urgent first."""
        try:
            found = json.loads(artifact)
            if found["version"] != "1.0":
                return []
            rows = sorted(
                (row.get("priority", 0), row["start_span"], row["end_span"]) for row in found["prefetch_spans"]
            )
            if any(type(number) is not int for row in rows for number in row):
                return []
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return []  # it is a wish only
        last = len(self._begins) - 1
        return [
            (self._begins[first], self._ends[min(end, last)]) for _, first, end in rows if 0 <= first <= min(end, last)
        ]


def _entries(buffer: FlatBuffer, files: int, layout: _Layout, archive: int) -> Iterator[TocEntry]:
    """Yield the entries, each behind the one before it: else one's content would be another one's header."""
    if not files:
        return
    if buffer.count(files) > ENTRIES_MAX:
        raise TocError(f"it has more than {ENTRIES_MAX} entries")
    free = 0  # where the next header may begin
    kinds: dict[int, bytes] = {}
    times: dict[int, int] = {}
    for place in buffer.pointed(files):
        name, kind, start, size, link, mode, uid, gid, _, _, time, major, minor, records = buffer.table(
            place, FILE_METADATA
        )
        entry = TarEntry(
            name=_name(buffer, name),
            kind=_kind(buffer, kind, kinds),
            mode=mode & 0o7777,
            uid=_checked(uid, fields.OWNER_MAX),
            gid=_checked(gid, fields.OWNER_MAX),
            mtime=_time(buffer, time, times),
            size=0,
            link=b"",
            device=(0, 0),
            xattrs=_xattrs(buffer, records) if records else _NO_XATTRS,
        )
        if entry.kind == FILE:
            entry = entry._replace(size=_checked(size, fields.SIZE_MAX))
        elif entry.kind in (HARD_LINK, SYMLINK):
            entry = entry._replace(link=_name(buffer, link))
        elif entry.kind in (CHARACTER, BLOCK):
            device = _checked(major, fields.MAJOR_MAX), _checked(minor, fields.MINOR_MAX)
            entry = entry._replace(device=device)
        if start % TAR_BLOCK or start < free + TAR_BLOCK or start + entry.size > archive:
            raise TocError(f"its places in the archive do not fit: {show(entry.name)}")
        free = start + entry.size + -entry.size % TAR_BLOCK
        yield TocEntry(entry, layout.pieces(start, entry.size))


def _kind(buffer: FlatBuffer, place: int, known: dict[int, bytes]) -> bytes:
    """Return the type of an entry; `known`: by the places of their names, which writers may share."""
    found = known.get(place)
    if found is None:
        text = buffer.string(place).decode("latin-1") if place else ""
        if text not in fields.KINDS:
            raise TocError(f"it has an entry of the unknown type {ascii(text)[:40]}")
        found = fields.KINDS[text]
        if len(known) < 64:
            known[place] = found
    return found


def _time(buffer: FlatBuffer, place: int, known: dict[int, int]) -> int:
    found = known.get(place)
    if found is None:
        text = buffer.string(place).decode("latin-1") if place else ""
        if not text:
            raise TocError("it has lost the time of a file")  # Go has no text for the year 10000
        found = fields.nanoseconds(text)
        if len(known) < 4096:
            known[place] = found
    return found


def _checked(value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise TocError(f"it has {value} for a number")
    return value


def _name(buffer: FlatBuffer, place: int) -> bytes:
    found = buffer.string(place) if place else b""
    if b"\0" in found:
        raise TocError(f"it has a NUL in the name {show(found)}")
    return found


def _xattrs(buffer: FlatBuffer, place: int) -> dict[bytes, bytes]:
    """Return the attributes among the pax records. Raises TocError for a sparse file, whose content is in pieces."""
    found = {}
    for row in buffer.pointed(place):
        key_place, value_place = buffer.table(row, XATTR)
        key = buffer.string(key_place) if key_place else b""
        if key.startswith(_SPARSE):
            raise TocError("it has a sparse file, whose parts it cannot tell")
        if key.startswith(XATTR_RECORD):
            found[key[len(XATTR_RECORD) :]] = buffer.string(value_place) if value_place else b""
    return found
