"""What a TOC says of a layer, against what the layer is: the same entries, and the same bytes out of the units."""

from __future__ import annotations

import hashlib
import io
import itertools
import zlib
from collections.abc import Container

import zstandard

from pyerofs.tar.decompress import LayerStream
from pyerofs.tar.reader import FILE, Tar, TarEntry
from pyerofs.tar.toc import formats
from pyerofs.tar.toc.model import UNIT_MAX, ZEROS, Toc, TocEntry, Units
from tests.support.images import digest_of
from tests.support.lazyimages import CONTAINERS, TOC_DIGEST, LazyLayer, compress_zstd, toc_footer, toc_member
from tests.support.ordinary import GZIP, ZSTD

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


def assert_sound(toc: Toc, entries: list[TocEntry], size: int) -> None:
    """Whatever a TOC says, what is made of it holds together: a layer of `size` bytes can be served by it."""
    units = toc.units
    end = 0
    for offset, stored, plain_size in zip(units.offsets, units.stored, units.plain, strict=True):
        assert end <= offset < offset + stored <= size and 0 < plain_size <= UNIT_MAX
        end = offset + stored
    names: set[bytes] = set()
    placed: list[tuple[int, int, int]] = []
    for found in entries:
        entry = found.entry
        assert "\ufffd".encode() not in entry.name + entry.link and b"\0" not in entry.name + entry.link
        assert entry.name not in names
        names.add(entry.name)
        assert sum(piece.length for piece in found.pieces) == entry.size and (entry.kind == FILE or not entry.size)
        assert 0 <= entry.uid < 2**32 - 1 and 0 <= entry.gid < 2**32 - 1 and 0 <= entry.mode < 0o10000
        for piece in found.pieces:
            assert piece.length > 0
            if piece.unit != ZEROS:
                assert len(piece.digest) == 32 and piece.offset + piece.length <= units.plain[piece.unit]
                placed.append((piece.unit, piece.offset, piece.length))
    assert placed == sorted(placed)
    for (unit, offset, length), (other, begin, _) in itertools.pairwise(placed):
        assert other > unit or begin >= offset + length
    assert toc.landmark is None or 0 <= toc.landmark < size


def with_toc(text: bytes, codec: str) -> LazyLayer:
    """A layer that has this for a TOC, and nothing in front of it but bytes that are fetched."""
    front = bytes(1 << 10)
    if codec == "gzip":
        return LazyLayer(front + toc_member(text) + toc_footer(len(front)), GZIP, {TOC_DIGEST: digest_of(text)})
    stored = compress_zstd(text)
    place = f"{len(front)}:{len(stored)}:{len(text)}:1"
    annotations = {f"{CONTAINERS}manifest-checksum": digest_of(stored), f"{CONTAINERS}manifest-position": place}
    return LazyLayer(front + stored, ZSTD, annotations)
