"""Write zTOCs (ztoc.py), as SOCI's tools read them. The same content gives the same bytes on any machine."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from ...core import WINDOW
from ...errors import ImageError
from ..reader import FILE, TarEntry
from . import ztoc
from .fields import KINDS, NO_TIME
from .flatbuffer import FlatWriter
from .model import DIGEST_SIZE
from .span import unpack_window
from .spans import SpanTable

VERSION = b"0.9"  # the one that SOCI has
TOOL = b"pyerofs"
_NAMES = {kind: name.encode() for name, kind in KINDS.items()}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LEVEL = 9  # of gzip


def write_ztoc(table: SpanTable, entries: Iterable[TarEntry]) -> bytes:
    """Return the zTOC of a layer with these entries. Raises ImageError for what it cannot tell."""
    writer = FlatWriter()
    root, root_fields = writer.table(writer.form(ztoc.ZTOC), (0, 0, table.size, table.archive, 0, 0))
    writer.string(root_fields[0], VERSION)
    writer.string(root_fields[1], TOOL)
    _write_spans(writer, root_fields[5], table)
    place, (files,) = writer.table(writer.form(ztoc.CONTENTS), (0,))
    writer.point(root_fields[4], place)
    _write_entries(writer, files, table.places, entries)
    made = writer.finish(root)
    if len(made) > ztoc.ZTOC_MAX:
        raise ImageError(f"its table of contents has {len(made)} bytes; at most {ztoc.ZTOC_MAX} are read")
    return made


def compress(data: bytes) -> bytes:
    """Return a zTOC as ztoc.unpack_ztoc() takes it: less than a quarter of it is left, mostly."""
    return gzip.compress(data, _LEVEL, mtime=0)


def _write_spans(writer: FlatWriter, field: int, table: SpanTable) -> None:
    count = len(table.spans)
    algorithm = ztoc.GZIP if table.codec == "span" else ztoc.UNCOMPRESSED
    place, (_, _, digests, state) = writer.table(writer.form(ztoc.COMPRESSION), (algorithm, count - 1, 0, 0))
    writer.point(field, place)
    place, rows = writer.vector(count)
    writer.point(digests, place)
    for number, row in enumerate(rows):
        digest = table.digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]
        writer.string(row, f"sha256:{digest.hex()}".encode())
    writer.point(state, writer.bytes_vector(_zinfo(table) if table.codec == "span" else _tar_zinfo(table)))


def _zinfo(table: SpanTable) -> bytes:
    parts = [ztoc.ZINFO_HEAD.pack(len(table.spans), table.spacing)]
    for span in table.spans:
        window = unpack_window(span.window) or bytes(WINDOW)
        parts.append(ztoc.CHECKPOINT.pack(span.offset + bool(span.bits), span.plain, span.bits, window))
    return b"".join(parts)


def _tar_zinfo(table: SpanTable) -> bytes:
    writer = FlatWriter()
    root, _ = writer.table(writer.form(ztoc.TAR_ZINFO), (2, table.spacing, table.size))
    return writer.finish(root)


def _write_entries(writer: FlatWriter, field: int, places: Sequence[int], entries: Iterable[TarEntry]) -> None:
    place, rows = writer.vector(len(places))
    writer.point(field, place)
    form, record = writer.form(ztoc.FILE_METADATA), writer.form(ztoc.XATTR)
    for row, start, entry in zip(rows, places, entries, strict=True):
        size = entry.size if entry.kind == FILE else 0
        major, minor = entry.device
        place, at = writer.table(
            form, (0, 0, start, size, 0, entry.mode, entry.uid, entry.gid, 0, 0, 0, major, minor, 0)
        )
        writer.point(row, place)
        for number, text in ((0, entry.name), (1, _NAMES[entry.kind]), (4, entry.link), (8, b""), (9, b"")):
            writer.string(at[number], text)
        writer.string(at[10], _time(entry.mtime))
        place, records = writer.vector(len(entry.xattrs))
        writer.point(at[13], place)
        for slot, (name, value) in zip(records, sorted(entry.xattrs.items()), strict=True):
            place, (key_field, value_field) = writer.table(record, (0, 0))
            writer.point(slot, place)
            writer.string(key_field, ztoc.XATTR_RECORD + name)
            writer.string(value_field, value)


def _time(nanoseconds: int) -> bytes:
    """RFC 3339, in UTC. Raises ImageError outside the years 1 to 9999; the first second of them means none."""
    seconds, rest = divmod(nanoseconds, 10**9)
    try:
        text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    except OverflowError:
        text = NO_TIME
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    if f"{text}{fraction}Z" == NO_TIME or text == NO_TIME:
        raise ImageError(f"a zTOC cannot tell the time of a file, {seconds} s since the epoch")
    return f"{text}{fraction}Z".encode()
