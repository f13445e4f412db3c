"""A layer by its TOC: which contents share a place on its device."""

from __future__ import annotations

import hashlib
import io

from pyerofs.erofs.data_map import BLOCK, DataMap
from pyerofs.erofs.laying import Laying
from pyerofs.erofs.toc_layer import map_layer
from pyerofs.tar.decompress import LayerStream
from pyerofs.tar.reader import FILE, Tar, TarEntry
from pyerofs.tar.toc.model import Toc, TocEntry, TocPiece, Units
from tests.support.lazyimages import stargz_layer
from tests.support.ordinary import file
from tests.support.tarballs import archive
from tests.support.tocs import read


def entry(name: bytes, size: int) -> TarEntry:
    return TarEntry(name, FILE, 0o644, 0, 0, 0, size, b"", (0, 0), {})


def places(toc: Toc, size: int) -> dict[bytes, list[tuple[int, int]]]:
    """Where the files lie on the device, and how far they reach there."""
    table = map_layer(toc, size).table
    contents = DataMap()
    return {
        of.name: [(extent.start, extent.blocks) for extent in contents.pieces(number, of.size)]
        for of, number in table.entries(contents, 1)
    }


def test_equal_contents_share_a_place() -> None:
    layer = stargz_layer(archive(file("a", b"x" * 5000), file("b", b"x" * 5000), file("c", b"y" * 5000)))
    toc, found = read(layer)
    toc.entries = iter(found)
    at = places(toc, len(layer.blob))
    assert at[b"a"] == at[b"b"] != at[b"c"]


def test_a_digest_that_files_of_two_sizes_state_is_not_shared() -> None:
    """The larger one would get what lies behind the smaller one, which nothing checks it by."""
    digest = hashlib.sha256(b"x" * 10).digest()
    units = Units("gzip", "plain")
    for number in range(3):
        units.add(number * 100, 100, BLOCK * 3)
    toc = Toc("eStargz", units)
    small = TocEntry(entry(b"small", 10), (TocPiece(0, 0, 10, digest),), digest)
    secret = TocEntry(entry(b"secret", 5), (TocPiece(1, 0, 5, b"s" * 32),), b"s" * 32)
    large = TocEntry(entry(b"large", BLOCK * 3), (TocPiece(2, 0, BLOCK * 3, digest),), digest)
    toc.entries = iter((small, secret, large))
    at = places(toc, 1000)
    taken = [range(start, start + blocks * BLOCK) for extents in at.values() for start, blocks in extents]
    assert sum(map(len, taken)) == len(set().union(*taken)) == 5 * BLOCK


def test_contents_that_are_only_stated_are_not_shared_with_those_that_were_read() -> None:
    """As a file of a layer that was read whole: it is there, whatever a TOC says of its digest."""
    content = b"x" * 5000
    layer = stargz_layer(archive(file("a", content)))
    toc, found = read(layer)
    toc.entries = iter(found)
    mapped = map_layer(toc, len(layer.blob)).table
    contents = DataMap()
    laying = Laying(contents, 1, lambda offset, data: None)
    tar = Tar(LayerStream(io.BytesIO(archive(file("b", content)))).read)
    numbers = [laying.lay(of.size, tar.data()) for of in tar]
    numbers += [number for _, number in mapped.entries(contents, 2)]
    assert [contents.devices[number] for number in numbers] == [1, 2]
