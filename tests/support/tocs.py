"""What a TOC says of a layer, against what the layer is: the same entries, and the same bytes out of the units."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Container

import zstandard

from pyerofs.tar.decompress import LayerStream
from pyerofs.tar.reader import FILE, Tar, TarEntry
from pyerofs.tar.toc import formats
from pyerofs.tar.toc.model import ZEROS, Toc, TocEntry, Units
from tests.support.lazyimages import LazyLayer

STARGZ_NAMES = (b".prefetch.landmark", b".no.prefetch.landmark", b"stargz.index.json")


def read(layer: LazyLayer) -> tuple[Toc, list[TocEntry]]:
    toc = formats.read_toc(layer.media_type, layer.annotations, len(layer.blob), layer.read)
    return toc, list(toc.entries)


def in_archive(blob: bytes, hidden: Container[bytes] = STARGZ_NAMES) -> list[tuple[TarEntry, bytes]]:
    """The entries and contents of the archive itself."""
    found = []
    tar = Tar(LayerStream(io.BytesIO(blob)).read)
    for entry in tar:
        content = bytearray(entry.size)
        for offset, piece in tar.data():
            content[offset : offset + len(piece)] = piece
        if entry.name not in hidden:
            found.append((entry, bytes(content)))
    return found


def content(units: Units, blob: bytes, entry: TocEntry) -> bytes:
    """The file's bytes, each piece of which is checked."""
    found = b""
    for piece in entry.pieces:
        if piece.unit == ZEROS:
            found += bytes(piece.length)
            continue
        offset = units.offsets[piece.unit]
        data = plain(units, blob[offset : offset + units.stored[piece.unit]], units.plain[piece.unit])
        part = data[piece.offset : piece.offset + piece.length]
        assert hashlib.sha256(part).digest() == piece.digest
        found += part
    return found


def plain(units: Units, stored: bytes, count: int) -> bytes:
    if units.codec == "gzip":
        return zlib.decompressobj(31).decompress(stored, count)
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(stored), read_across_frames=True) as reader:
        found = b""
        while len(found) < count and (piece := reader.read(count - len(found))):
            found += piece
        return found


def whole_seconds(entry: TarEntry) -> TarEntry:
    """As eStargz keeps it: rounded, a half upwards."""
    return entry._replace(mtime=(entry.mtime + 500_000_000) // 1_000_000_000 * 1_000_000_000)


def assert_exact(layer: LazyLayer) -> Toc:
    """Compare TOC and archive; gives the TOC."""
    toc, entries = read(layer)
    archive = in_archive(layer.blob)
    if "containerd.io/snapshot/stargz/toc.digest" in layer.annotations:
        archive = [(whole_seconds(entry), data) for entry, data in archive]
    assert [entry.entry for entry in entries] == [entry for entry, _ in archive]
    for entry, (_, data) in zip(entries, archive, strict=True):
        if entry.entry.kind == FILE:
            assert content(toc.units, layer.blob, entry) == data
    return toc
