"""Tar layers read by their chunk maps: checked piece by piece, by few requests, with zeros that nobody fetches."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import NamedTuple

import pytest

from pyerofs.erofs.chunk_map import ChunkMap
from pyerofs.erofs.data_map import BLOCK
from pyerofs.erofs.layer import Layer
from pyerofs.erofs.layer_table import LayerTable
from pyerofs.erofs.toc_layer import map_layer
from pyerofs.errors import CorruptError
from pyerofs.source.mapped import MappedSource
from pyerofs.tar.reader import FILE
from pyerofs.tar.toc.formats import read_toc
from tests.source.test_chunked import FakeBlob, Sink, Transport, flipped
from tests.support.lazyimages import EVERYTHING, HOLES, LazyLayer, chunked_layer, stargz_layer
from tests.support.ordinary import Member, file
from tests.support.tarballs import archive
from tests.support.tocs import in_archive

SOME = random.Random(17).randbytes(300_000)
MADE: dict[str, Callable[[bytes], LazyLayer]] = {
    "estargz": stargz_layer,
    "estargz-small": lambda tar: stargz_layer(tar, chunk=10_000),
    "estargz-shared": lambda tar: stargz_layer(tar, chunk=50_000, share=100_000),
    "zstdchunked": chunked_layer,
    "stargz-zstd": lambda tar: stargz_layer(tar, zstd=True),
}


class Mapped(NamedTuple):
    table: LayerTable
    source: MappedSource
    blob: FakeBlob

    @property
    def chunks(self) -> ChunkMap:
        return self.source.chunks


def mapped(layer: LazyLayer, *script: object, **options: object) -> Mapped:
    toc = read_toc(layer.media_type, layer.annotations, len(layer.blob), layer.read)
    made = map_layer(toc, len(layer.blob))
    blob = FakeBlob(layer.blob, *script, **options)  # type: ignore[arg-type]  # a fake
    where = Layer(0, "sha256:" + "0" * 64, len(layer.blob), map="sha256:" + "1" * 64)
    source = MappedSource("app:1", where, blob, Transport(), ChunkMap(made.chunk_map))  # type: ignore[arg-type]  # a fake
    return Mapped(made.table, source, blob)


def read(found: Mapped, offset: int, length: int, stop_at: int | None = None) -> Sink:
    sink = Sink(offset, stop_at)
    found.source.read_range(offset, length, sink, whole=sink.whole, cancel=lambda: False)
    return sink


def read_all(found: Mapped, step: int = 1 << 20) -> bytes:
    """As fetch threads do: a run that ends early is followed by another one."""
    data = b""
    while len(data) < found.chunks.size:
        sink = read(found, len(data), min(step, found.chunks.size - len(data)))
        assert sink.data
        data += sink.data
    return data


def contents(table: LayerTable, device: bytes) -> dict[bytes, bytes]:
    """What files hold, by their names, out of the bytes of the device."""
    found = {}
    data_map = table.contents
    for entry, number in table.entries(data_map, 0):
        if entry.kind == FILE:
            content = bytearray(-(-entry.size // BLOCK) * BLOCK)
            for first, blocks, start in data_map.pieces(number, entry.size):
                content[first * BLOCK : (first + blocks) * BLOCK] = device[start : start + blocks * BLOCK]
            assert not any(content[entry.size :])
            found[entry.name] = bytes(content[: entry.size])
    return found


def one_file(data: bytes, **options: int) -> LazyLayer:
    return stargz_layer(archive(file("one", data)), **options)  # type: ignore[arg-type]  # a fake


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("step", [4096, 1 << 17, 1 << 23])
def test_a_device_has_what_the_archive_has(make: Callable[[bytes], LazyLayer], step: int) -> None:
    layer = make(EVERYTHING)
    found = mapped(layer)
    device = read_all(found, step)
    assert len(device) == found.chunks.size == found.table.device_size
    archived = {entry.name: data for entry, data in in_archive(layer.blob) if entry.kind == FILE}
    assert contents(found.table, device) == archived


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_device_is_read_from_anywhere(make: Callable[[bytes], LazyLayer]) -> None:
    layer = make(EVERYTHING)
    device = read_all(mapped(layer))
    chance = random.Random(4)
    found = mapped(layer)
    for _ in range(100):
        offset = chance.randrange(len(device))
        length = chance.randrange(1, len(device) - offset + 1)
        sink = read(found, offset, length)
        assert sink.data and sink.data == device[offset : offset + len(sink.data)]


def test_a_whole_device_is_one_request() -> None:
    found = mapped(stargz_layer(EVERYTHING, chunk=10_000))
    read(found, 0, found.chunks.size)
    assert len(found.blob.asked) == 1
    assert found.chunks.units > 100


def test_zeros_are_never_fetched() -> None:
    layer = chunked_layer(archive(HOLES))
    found = mapped(layer)
    device = read_all(found)
    assert contents(found.table, device) == {b"holes": in_archive(layer.blob)[0][1]}
    assert len(device) < 30_000  # of 87,003: the long run of zeros has no place on the device
    assert found.chunks.pieces == 2


def test_files_with_the_same_content_share_it() -> None:
    same: list[Member] = [file("a", SOME), file("b", SOME)]
    found = mapped(stargz_layer(archive(*same)))
    assert found.table.device_size == -(-len(SOME) // BLOCK) * BLOCK
    assert set(contents(found.table, read_all(found)).values()) == {SOME}


def test_a_unit_is_inflated_once_for_all_its_pieces() -> None:
    found = mapped(stargz_layer(archive(*(file(f"{n}", bytes([n]) * 5000) for n in range(1, 20))), share=1 << 20))
    assert found.chunks.units == 1
    for offset in range(0, found.chunks.size, 8192):
        assert len(read(found, offset, 8192).data) == 8192
    assert len(found.blob.asked) == 1


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_flipped_bit_never_goes_on(make: Callable[[bytes], LazyLayer]) -> None:
    """Wherever it is: the other mirror is asked, and the bytes are right."""
    layer = make(archive(file("one", SOME), file("two", b"2" * 9000), file("three", SOME[:70_000])))
    device = read_all(mapped(layer))
    for at in range(0, len(layer.blob), 9973):
        found = mapped(layer, flipped(at))
        assert read_all(found) == device


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_flipped_bit_at_all_mirrors_is_an_error_that_names_its_end(make: Callable[[bytes], LazyLayer]) -> None:
    """Reads behind it do not fail with it."""
    layer = make(archive(file("one", SOME), file("two", b"2" * 9000), file("three", SOME[:70_000])))
    device = read_all(mapped(layer))
    for at in range(0, len(layer.blob), 19_997):
        found = mapped(layer, always=flipped(at))
        reached = 0
        good = bytearray()
        while reached < len(device):
            sink = Sink(reached)
            try:
                found.source.read_range(reached, len(device) - reached, sink, whole=sink.whole, cancel=lambda: False)
            except CorruptError as error:
                assert error.end is not None and error.end > sink.at
                good += sink.data
                good += device[sink.at : error.end]
                reached = error.end
                continue
            good += sink.data
            reached = sink.at
        assert good == device


def test_a_registry_that_sends_the_whole_blob_is_read_as_a_whole() -> None:
    layer = chunked_layer(EVERYTHING)
    device = read_all(mapped(layer))

    def everything(
        blob: FakeBlob, at: int, end: int, sink: Callable[[int, bytes], bool], whole: Callable[[], None]
    ) -> None:
        whole()
        blob.send(blob.data, 0, blob.size, sink)

    sink = read(mapped(layer, everything), BLOCK * 10, BLOCK)
    assert sink.start == 0 and sink.data == device


def test_the_beginning_of_a_large_file_is_not_fetched_for_the_end_of_a_run() -> None:
    found = mapped(stargz_layer(archive(file("small", SOME[:5000]), file("large", SOME))))
    assert len(read(found, 0, 16 << 10).data) == 8192
    assert found.blob.asked[0][1] < 10_000
    assert read(found, 8192, 8192).data == SOME[:8192]


def test_a_short_run_that_begins_within_a_file_ends_with_it() -> None:
    """A reader of many files asks for the next one from its beginning on, and long runs are for him."""
    many = [file(f"{number}", SOME[number:]) for number in range(12)]
    found = mapped(stargz_layer(archive(*many), chunk=50_000))
    size = -(-len(SOME) // BLOCK) * BLOCK
    assert len(read(found, 8192, 1 << 20).data) == size - 8192
    assert len(read(found, size, 2 * size).data) == 2 * size
    assert len(read(found, 8192, 3 << 20).data) == 3 << 20


def test_what_came_unasked_is_given_as_spare() -> None:
    found = mapped(one_file(SOME))
    spare: list[tuple[int, bytes]] = []
    found.source.spare = lambda at, data: spare.append((at, data))
    assert read(found, 8192, 4096).data == SOME[8192 : 8192 + 4096]
    [(at, data)] = spare
    assert at == 0 and data == SOME.ljust(found.chunks.size, b"\0")


def test_a_unit_that_two_threads_want_is_fetched_once() -> None:
    asked = threading.Event()
    go_on = threading.Event()

    def slow(blob: FakeBlob, at: int, end: int, sink: Callable[[int, bytes], bool], whole: Callable[[], None]) -> None:
        asked.set()
        assert go_on.wait(20)
        blob.send(blob.data, at, end, sink)

    found = mapped(one_file(SOME), slow)
    results: dict[int, bytes] = {}

    def work(offset: int) -> None:
        results[offset] = read(found, offset, 4096).data

    first = threading.Thread(target=work, args=(0,))
    first.start()
    assert asked.wait(20)
    second = threading.Thread(target=work, args=(8192,))
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert results == {0: SOME[:4096], 8192: SOME[8192 : 8192 + 4096]}
    assert len(found.blob.asked) == 1


def test_a_reader_that_wants_no_more_ends_the_request() -> None:
    found = mapped(stargz_layer(archive(file("one", SOME)), chunk=10_000))
    assert len(read(found, 0, 300_000, stop_at=4096).data) < 300_000


def test_a_landmark_is_a_place_on_the_device() -> None:
    landmark = file(".prefetch.landmark", b"\x0f")
    found = mapped(stargz_layer(archive(file("first", SOME[:9000]), landmark, file("second", SOME))))
    assert found.chunks.prefix == 12288
    assert found.source.storage.hot == ((0, 12288),)
    assert mapped(stargz_layer(archive(file("first", SOME)))).source.storage.hot == ()
    assert b".prefetch.landmark" not in contents(found.table, read_all(found))
