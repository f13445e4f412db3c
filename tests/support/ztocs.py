"""Layers with zTOCs, made as `pyerofs index` makes them; and what is in one, by the spans of the layer alone."""

from __future__ import annotations

import hashlib
import io
import tarfile
from unittest.mock import patch

from pyerofs.tar.decompress import LayerStream
from pyerofs.tar.reader import FILE, Tar, TarEntry
from pyerofs.tar.toc import ztoc_writer
from pyerofs.tar.toc.fields import KINDS
from pyerofs.tar.toc.model import UNIT_MAX, Toc, TocEntry
from pyerofs.tar.toc.span import inflate_unit
from pyerofs.tar.toc.spans import SpanRecorder, SpanTable
from pyerofs.tar.toc.ztoc import ZINFO_HEAD
from pyerofs.tar.toc.ztoc_writer import compress, write_ztoc
from tests.support.tarballs import archive, info


def record(blob: bytes, spacing: int) -> tuple[SpanRecorder, list[TarEntry], list[bytes]]:
    """Read a layer as a conversion does: what was recorded of it, its entries, and the contents of its files."""
    spans = SpanRecorder(spacing)
    plain = LayerStream(io.BytesIO(blob), spans=spans)
    tar = Tar(plain.read)
    entries, contents = [], []
    for entry in tar:
        spans.entry(tar.position, whole=entry.kind != FILE or tar.is_whole)
        entries.append(entry)
        content = bytearray(entry.size)
        for offset, piece in tar.data():
            content[offset : offset + len(piece)] = piece
        contents.append(bytes(content))
    plain.finish()
    spans.archive = plain.size
    return spans, entries, contents


def make_ztoc(blob: bytes, spacing: int) -> tuple[bytes, SpanTable, list[TarEntry], list[bytes]]:
    """The zTOC of a layer, and what it was made of."""
    spans, entries, contents = record(blob, spacing)
    table = spans.finish()
    assert table is not None
    return write_ztoc(table, entries), table, entries, contents


def read_unit(toc: Toc, number: int, blob: bytes) -> bytes:
    """The plain bytes of a unit, which has been checked."""
    units = toc.units
    stored = blob[units.offsets[number] : units.offsets[number] + units.stored[number]]
    assert hashlib.sha256(stored).digest() == units.digests[32 * number : 32 * number + 32]
    if units.codec == "none":
        return stored
    begin = units.window_ends[number - 1] if number else 0
    window = bytes(units.windows[begin : units.window_ends[number]])
    return inflate_unit(stored, units.plain[number], units.bits[number], window)


def read_all(toc: Toc, blob: bytes) -> tuple[list[TarEntry], list[bytes]]:
    """Entries and contents, by the TOC and the spans that it names."""
    plain = [read_unit(toc, number, blob) for number in range(len(toc.units))]
    entries, contents = [], []
    for found in toc.entries:
        entries.append(found.entry)
        parts = [plain[piece.unit][piece.offset : piece.offset + piece.length] for piece in found.pieces]
        contents.append(b"".join(parts))
        assert len(contents[-1]) == found.entry.size
    return entries, contents


def assert_sound(toc: Toc, entries: list[TocEntry], size: int) -> None:
    """Whatever a zTOC says, a layer of `size` bytes can be served by it."""
    units = toc.units
    assert len(units.digests) == 32 * len(units)
    end = 0
    for number, (offset, stored, plain) in enumerate(zip(units.offsets, units.stored, units.plain, strict=True)):
        shared = units.codec == "span" and units.bits[number] > 0
        assert end - shared <= offset < offset + stored <= size and 0 < plain <= UNIT_MAX
        end = offset + stored
    place = (0, 0)
    for entry, pieces, _ in entries:
        assert b"\0" not in entry.name + entry.link and 0 <= entry.mode < 0o10000 and entry.kind in KINDS.values()
        assert 0 <= entry.uid < 2**32 - 1 and 0 <= entry.gid < 2**32 - 1
        assert sum(piece.length for piece in pieces) == entry.size
        for piece in pieces:
            assert place <= (piece.unit, piece.offset) and piece.length > 0 and not piece.digest
            place = piece.unit, piece.offset + piece.length
            assert place[1] <= units.plain[piece.unit]
    for begin, stop in toc.prefetch:
        assert 0 <= begin < stop <= size


SAMPLE_SIZE = 3072


def samples() -> tuple[bytes, ...]:
    """Small zTOCs of a blob of SAMPLE_SIZE bytes: of a tar archive, and of a gzip stream with one span."""
    blob = archive(
        (info("a", pax_headers={"SCHILY.xattr.user.n": "v"}), b"x" * 600), (info("l", type=tarfile.SYMTYPE), b"")
    )
    blob = blob[:SAMPLE_SIZE]
    plain, table, entries, _ = make_ztoc(blob, 1024)
    first = table._replace(codec="span", spans=table.spans[:1], digests=table.digests[:32])
    with patch.object(ztoc_writer, "_zinfo", lambda _: ZINFO_HEAD.pack(1, 1024)):  # of version 1: no checkpoint
        packed = write_ztoc(first, entries)
    return plain, compress(plain), packed
