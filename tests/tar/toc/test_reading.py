"""TOCs that are right in every way the formats allow, read: entries, contents, units, and what is fetched for it."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from pyerofs.tar.toc import entries as toc_entries
from pyerofs.tar.toc import formats
from pyerofs.tar.toc.model import ZEROS, Toc, Units
from tests.support import tocs
from tests.support.lazyimages import EVERYTHING, STARGZ, LazyLayer, chunked_layer, stargz_layer
from tests.support.ordinary import directory, file, link
from tests.support.tarballs import archive
from tests.support.tocs import assert_exact

LAYERS: dict[str, Callable[[], LazyLayer]] = {
    "estargz": lambda: stargz_layer(EVERYTHING),
    "estargz-chunks": lambda: stargz_layer(EVERYTHING, chunk=10_000),
    "estargz-shared": lambda: stargz_layer(EVERYTHING, chunk=10_000, share=50_000),
    "stargz-old-footer": lambda: stargz_layer(EVERYTHING, footer="old"),
    "zstd-stargz": lambda: stargz_layer(EVERYTHING, zstd=True, chunk=100_000),
    "zstd-stargz-shared": lambda: stargz_layer(EVERYTHING, zstd=True, share=100_000),
    "zstd-containers": lambda: chunked_layer(EVERYTHING),
    "zstd-containers-small": lambda: chunked_layer(EVERYTHING, chunk=1000),
    "empty": lambda: stargz_layer(archive()),
    "empty-zstd": lambda: chunked_layer(archive()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_toc_says_what_the_archive_holds(name: str) -> None:
    toc = assert_exact(LAYERS[name]())
    ends = [offset + stored for offset, stored in zip(toc.units.offsets, toc.units.stored, strict=True)]
    assert all(end <= offset for end, offset in zip(ends, toc.units.offsets[1:], strict=False))


def test_chunks_that_share_a_member_are_checked_each_by_itself() -> None:
    toc, found = tocs.read(stargz_layer(EVERYTHING, chunk=10_000, share=50_000))
    pieces = [piece for entry in found for piece in entry.pieces]
    assert len(pieces) > 5 * len(toc.units)
    assert all(len(piece.digest) == 32 for piece in pieces)
    assert not toc.units.digests


def test_zeros_are_no_unit() -> None:
    toc, found = tocs.read(chunked_layer(EVERYTHING))
    (holes,) = (entry for entry in found if entry.entry.name == b"holes")
    assert [(piece.unit == ZEROS, piece.length) for piece in holes.pieces] == [
        (True, 9000), (False, 8000), (True, 70_000), (False, 3)]  # fmt: skip
    assert ZEROS not in toc.units.offsets


def test_equal_contents_have_one_identity() -> None:
    for layer in (stargz_layer(EVERYTHING), chunked_layer(EVERYTHING)):
        found = {entry.entry.name: entry for entry in tocs.read(layer)[1]}
        assert found[b"same-1"].identity() == found[b"same-2"].identity() != found[b"large"].identity()


def test_a_landmark_says_how_far_to_prefetch_and_is_no_file() -> None:
    layer = stargz_layer(
        archive(file("first", b"1" * 5000), file(".prefetch.landmark", b"\x0f"), file("second", b"2" * 5000))
    )
    toc, found = tocs.read(layer)
    assert [entry.entry.name for entry in found] == [b"first", b"second"]
    first, second = (toc.units.offsets[entry.pieces[0].unit] for entry in found)
    assert toc.landmark is not None and first < toc.landmark < second
    assert toc.units.offsets[0] + toc.units.stored[0] <= toc.landmark


def test_a_file_may_share_the_member_of_a_landmark() -> None:
    layer = stargz_layer(archive(file(".no.prefetch.landmark", b"\x0f"), file("second", b"2" * 5000)), share=100_000)
    toc = assert_exact(layer)
    assert (toc.landmark, len(toc.units)) == (None, 1)


def test_the_formats_own_names_are_files_where_they_are_not_its_own() -> None:
    tar = archive(file(".prefetch.landmark", b"x"), directory("d"), file("d/.prefetch.landmark", b"y"))
    _, found = tocs.read(chunked_layer(tar))
    assert [entry.entry.name for entry in found] == [b".prefetch.landmark", b"d/", b"d/.prefetch.landmark"]
    _, found = tocs.read(stargz_layer(tar))
    assert [entry.entry.name for entry in found] == [b"d/", b"d/.prefetch.landmark"]


def test_hard_links_stay_what_they_are() -> None:
    _, found = tocs.read(stargz_layer(archive(file("a", b"x"), link("b", "a"))))
    assert [(entry.entry.kind, entry.entry.link, entry.pieces != ()) for entry in found] == [
        (b"0", b"", True), (b"1", b"a", False)]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (None, 0),
        ("", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01Z", 10**9),
        ("2020-09-13T12:26:40.123456789Z", 1_600_000_000_123_456_789),
        ("2020-09-13T14:26:40.5+02:00", 1_600_000_000_500_000_000),
        ("1969-12-31T23:43:20.25Z", -999_750_000_000),
        ("9999-12-31T23:59:59Z", 253_402_300_799 * 10**9),
    ],
)
def test_a_time_is_exact_to_the_nanosecond(text: str | None, nanoseconds: int) -> None:
    def set_time(toc: dict[str, Any]) -> None:
        toc["entries"][0]["modtime"] = text

    _, found = tocs.read(chunked_layer(archive(file("a", b"x")), edit=set_time))
    assert found[0].entry.mtime == nanoseconds


def test_a_toc_is_fetched_with_the_end_of_the_layer() -> None:
    layer = stargz_layer(EVERYTHING)
    reads: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return layer.read(offset, length)

    formats.read_toc(layer.media_type, layer.annotations, len(layer.blob), read)
    assert reads == [(len(layer.blob) - 65536, 65536)]


def test_a_large_toc_is_fetched_with_one_request_more() -> None:
    names = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(3000)]
    layer = stargz_layer(archive(*(file(name) for name in names)))
    reads: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return layer.read(offset, length)

    toc = formats.read_toc(layer.media_type, layer.annotations, len(layer.blob), read)
    assert len(list(toc.entries)) == 3000
    (tail, _), (begin, length) = reads
    assert begin + length == tail


def test_where_the_toc_is_comes_from_the_annotations_or_the_footer() -> None:
    layer = stargz_layer(EVERYTHING, zstd=True)
    without = {key: value for key, value in layer.annotations.items() if not key.endswith("position")}
    assert_exact(layer._replace(annotations=without))
    containers = chunked_layer(EVERYTHING)
    old = {key.replace(".github.", "."): value for key, value in containers.annotations.items()}
    assert all(key.startswith(STARGZ) for key in old)
    assert_exact(containers._replace(annotations=old))


def test_members_in_another_order_and_unknown_ones_are_taken() -> None:
    def turn(toc: dict[str, Any]) -> None:
        found = toc.pop("entries")
        toc |= {"more": {"a": [1, None]}, "entries": found, "last": "x"}
        toc["version"] = toc.pop("version")
        found[0]["unknown"] = [[]]

    assert_exact(stargz_layer(EVERYTHING, edit=turn))


def test_a_layer_without_a_toc_has_no_format() -> None:
    assert formats.toc_format("application/vnd.oci.image.layer.v1.tar+gzip", {"a": "b"}) == ""
    assert formats.toc_format("application/vnd.docker.image.rootfs.diff.tar.gzip", stargz_layer(EVERYTHING).annotations)


def test_many_entries_take_little_memory() -> None:
    """They are decoded one by one: what grows with their number is a set of numbers, and the columns of units."""
    digest = f"sha256:{'00' * 32}"
    beginning = b'{"version":1,"entries":['
    count = 15_000

    def text() -> Any:
        yield beginning
        for number in range(count):
            comma = b"," if number else b""
            yield comma + (
                b'{"name":"usr/share/some/directory/of/many/file-%d","type":"reg","size":10,"mode":420,'
                b'"modtime":"2020-09-13T12:26:%02dZ","offset":%d,"digest":"%s","xattrs":{"user.x":"eA=="}}'
                % (number, number % 60, number * 100 + 50, digest.encode())
            )
        yield b"]}"

    pieces = text()
    toc = Toc("eStargz", Units("gzip", "plain"))
    tracemalloc.start()
    try:
        found = toc_entries.read_entries(lambda _: next(pieces, b""), toc, count * 100 + 1000)
        assert sum(1 for _ in found) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(toc.units) == count
    assert peak < (2 << 20) + 160 * count  # bytes; the entries themselves would be thousands each


def test_a_read_of_the_toc_raises_what_the_registry_raises() -> None:
    layer = stargz_layer(EVERYTHING)

    def read(offset: int, length: int) -> bytes:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        formats.read_toc(layer.media_type, layer.annotations, len(layer.blob), read)
