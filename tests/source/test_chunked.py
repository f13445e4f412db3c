"""Chunks are checked before anything of them goes on, whatever their layout, and however the blob's bytes arrive."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.erofs.chunk_index import Chunk, parse
from pyerofs.erofs.layer import Layer, describe
from pyerofs.errors import CorruptError, ImageError, RegistryError
from pyerofs.oci.manifest import Descriptor, Manifest
from pyerofs.source import chunked, recent
from pyerofs.source.chunked import ChunkedSource, ChunkReader
from pyerofs.source.index_file import LoadedIndex
from tests.support.images import Layer as Made
from tests.support.indexedlayers import compressed, image, raw

Answer = Callable[["FakeBlob", int, int, Callable[[int, bytes], bool], Callable[[], None]], None]


def described(made: Made) -> tuple[Layer, LoadedIndex]:
    found = made.descriptor
    descriptor = Descriptor(found["mediaType"], made.digest, len(made.data), found["annotations"])  # type: ignore[arg-type]  # a fake
    layer = describe(Manifest("", (descriptor,)), 0)
    assert layer.index is not None
    section = made.data[layer.index.offset : layer.index.end]
    chunks = parse(section, layer.index)
    assert chunks is not None
    return layer, LoadedIndex(section, chunks)


def chunks_of(found: LoadedIndex) -> list[Chunk]:
    return [found.chunks.chunk(number) for number in range(len(found.chunks))]


class FakeBlob:
    """Answers as its script says, each answer as one mirror after the other; the last mirror tells the truth, unless
    there is one that `always` answers."""

    def __init__(self, data: bytes, *script: Answer, always: Answer | None = None, step: int = 1000):
        self.data = data
        self.size = len(data)
        self.script = list(script)
        self.always = always
        self.step = step
        self.asked: list[tuple[int, int]] = []

    def send(self, data: bytes, at: int, end: int, sink: Callable[[int, bytes], bool]) -> bool:
        while at < end:
            piece = data[at : min(at + self.step, end)]
            if not sink(at, piece):
                return False
            at += len(piece)
        return True

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Callable[[int, bytes], bool],
        *,
        whole: Callable[[], None],
        cancel: Callable[[], bool],
        begun: Callable[[], bool],
    ) -> None:
        self.asked.append((offset, length))
        while self.script:
            try:
                return self.script.pop(0)(self, offset, offset + length, sink, whole)
            except RegistryError:
                if begun():
                    raise
        if self.always:
            return self.always(self, offset, offset + length, sink, whole)
        self.send(self.data, offset, offset + length, sink)
        return None


class Transport:
    def close(self) -> None:
        pass


def source(
    made: Made, *script: Answer, always: Answer | None = None, step: int = 1000
) -> tuple[ChunkedSource, FakeBlob]:
    layer, found = described(made)
    blob = FakeBlob(made.data, *script, always=always, step=step)
    return ChunkedSource("app:1", layer, blob, Transport(), found), blob  # type: ignore[arg-type]  # a fake


class Sink:
    def __init__(self, offset: int, stop_at: int | None = None) -> None:
        self.start = self.at = offset
        self.data = b""
        self.stop_at = stop_at

    def __call__(self, at: int, piece: bytes) -> bool:
        assert at == self.at and piece
        self.data += piece
        self.at += len(piece)
        return self.stop_at is None or self.at < self.stop_at

    def whole(self) -> None:
        self.start = self.at = 0
        self.data = b""


def read(found: ChunkedSource, offset: int, length: int, stop_at: int | None = None) -> Sink:
    sink = Sink(offset, stop_at)
    found.read_range(offset, length, sink, whole=sink.whole, cancel=lambda: False)
    return sink


def flipped(at: int, mask: int = 1) -> Answer:
    """A mirror with one wrong byte."""

    def answer(
        blob: FakeBlob, first: int, end: int, sink: Callable[[int, bytes], bool], whole: Callable[[], None]
    ) -> None:
        data = bytearray(blob.data)
        data[at] ^= mask
        blob.send(bytes(data), first, end, sink)

    return answer


def broken(count: int) -> Answer:
    """So many bytes, and then the connection is gone."""

    def answer(
        blob: FakeBlob, first: int, end: int, sink: Callable[[int, bytes], bool], whole: Callable[[], None]
    ) -> None:
        blob.send(blob.data, first, min(end, first + count), sink)
        raise RegistryError("gone", temporary=True)

    return answer


def all_of_it(
    blob: FakeBlob, first: int, end: int, sink: Callable[[int, bytes], bool], whole: Callable[[], None]
) -> None:
    whole()
    blob.send(blob.data, 0, blob.size, sink)


def spoiled(made: Made, number: int) -> Answer:
    """A mirror with one wrong byte in the middle of a chunk."""
    chunk = described(made)[1].chunks.chunk(number)
    return flipped(chunk.offset + chunk.stored // 2)


DATA = image(8)
LAYERS = {
    "raw": raw(DATA, 5000),
    "even": raw(DATA, 8192),
    "zstd": compressed(DATA, 5000),
    "unnamed": compressed(DATA, 8192, write_content_size=False),
    "behind another frame": compressed(DATA, 5000, hashes="sha512", lead=b"\x50\x2a\x4d\x18\3\0\0\0abc"),
}
kinds = pytest.mark.parametrize("kind", LAYERS)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_layout_any_range_any_pieces(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 20_000))
    content = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    sizes = data.draw(st.lists(st.integers(1, 3000), max_size=20))
    made = (raw if data.draw(st.booleans()) else compressed)(content, sizes)
    found, blob = source(made, step=data.draw(st.integers(100, 5000)))
    assert found.size == size
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - offset))
    assert read(found, offset, length).data == content[offset : offset + length]
    # What is fetched: the chunks that the range touches, and no more.
    chunks = chunks_of(described(made)[1])
    touched = [c for c in chunks if c.start < offset + length and c.start + c.length > offset]
    assert blob.asked == [(touched[0].offset, touched[-1].offset + touched[-1].stored - touched[0].offset)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_wrong_byte_goes_on(data: st.DataObject) -> None:
    """A place is spoiled at every mirror: what comes before its chunk may go on, nothing else."""
    content = image(3)
    sizes = data.draw(st.lists(st.integers(1, 4000), max_size=12))
    hashes = data.draw(st.sampled_from(["sha256", "sha512"]))
    made = (raw if data.draw(st.booleans()) else compressed)(content, sizes, hashes=hashes)
    layer, index = described(made)
    assert layer.index is not None
    at = data.draw(st.integers(0, layer.index.offset - 1))
    mask = data.draw(st.integers(1, 255))
    found, _ = source(made, always=flipped(at, mask), step=data.draw(st.integers(500, 9000)))
    sink = Sink(0)
    with pytest.raises(CorruptError):
        found.read_range(0, found.size, sink, whole=sink.whole, cancel=lambda: False)
    chunk = next(c for c in chunks_of(index) if c.offset <= at < c.offset + c.stored)
    assert sink.data == content[: chunk.start]


@kinds
def test_what_is_wrong_at_one_mirror_is_asked_of_the_next(kind: str) -> None:
    made = LAYERS[kind]
    found, blob = source(made, spoiled(made, 0), step=700)
    assert read(found, 0, found.size).data == DATA
    assert len(blob.asked) == 1  # nothing had gone on, so the next mirror's answer took its place
    found, blob = source(made, spoiled(made, 2), step=700)
    assert read(found, 0, found.size).data == DATA
    assert blob.asked[1][0] == described(made)[1].chunks.chunk(2).offset  # the rest only


@kinds
def test_a_byte_that_is_wrong_everywhere_is_asked_for_a_bounded_number_of_times(kind: str) -> None:
    made = LAYERS[kind]
    found, blob = source(made, always=spoiled(made, 0))
    with pytest.raises(CorruptError, match="chunk at 0"):
        read(found, 0, 4096)
    assert len(blob.asked) == chunked.PASSES
    found, blob = source(made, always=spoiled(made, 2))
    with pytest.raises(CorruptError, match="chunk at"):
        read(found, 0, found.size)
    assert len(blob.asked) == 1 + chunked.PASSES


@kinds
def test_a_transfer_that_breaks_in_the_first_chunk_leads_to_the_next_mirror(kind: str) -> None:
    found, blob = source(LAYERS[kind], broken(30), step=10)
    assert read(found, 9000, 9000).data == DATA[9000:18_000]
    assert len(blob.asked) == 1


def test_a_transfer_that_breaks_later_is_the_fetcher_s() -> None:
    found, _ = source(LAYERS["raw"], broken(7000), step=500)
    sink = Sink(0)
    with pytest.raises(RegistryError, match="gone") as caught:
        found.read_range(0, found.size, sink, whole=sink.whole, cancel=lambda: False)
    assert caught.value.temporary
    assert sink.data == DATA[:5000]  # one chunk


@kinds
def test_a_registry_that_ignores_the_range(kind: str) -> None:
    found, blob = source(LAYERS[kind], all_of_it)
    sink = read(found, 20_000, 5000)
    assert (sink.start, sink.data) == (0, DATA)
    assert len(blob.asked) == 1


def test_one_that_ignores_it_and_is_wrong() -> None:
    def bad_whole(blob: FakeBlob, *more: object) -> None:
        more[3]()  # type: ignore[operator]  # a fake
        data = bytearray(blob.data)
        data[17_000] ^= 1
        blob.send(bytes(data), 0, blob.size, more[2])  # type: ignore[arg-type]  # a fake

    found, blob = source(LAYERS["raw"], bad_whole, all_of_it)
    assert read(found, 20_000, 5000).data == DATA
    found, blob = source(LAYERS["raw"], bad_whole)
    assert read(found, 20_000, 5000).data == DATA
    assert blob.asked[1] == (15_000, len(DATA) - 15_000)


@kinds
def test_who_wants_no_more_gets_no_more(kind: str) -> None:
    found, _ = source(LAYERS[kind])
    sink = read(found, 0, found.size, stop_at=6000)
    assert sink.data == DATA[: len(sink.data)] and 6000 <= len(sink.data) <= 20_000


def test_what_a_source_says_of_itself() -> None:
    found, _ = source(LAYERS["even"])
    assert found.storage.align == 8192 and found.storage.verified
    assert found.storage.key.startswith("sha256+chunks:")
    assert source(LAYERS["raw"])[0].storage.align == 4096  # no multiple of a granule
    assert source(raw(DATA, [4096, 8192]))[0].storage.align == 4096
    bare, _ = source(compressed(DATA, 8192, hashes=""))
    assert not bare.storage.verified and bare.storage.key.startswith("sha256+zstd:")
    assert bare.content() == bare.origin.content != ""
    assert read(bare, 5, 20_000).data == DATA[5:20_005]
    without, _ = source(compressed(DATA, 8192, hashes="", content=False))
    assert without.content() is None


@pytest.mark.parametrize("hashes", ["sha256", ""])
@pytest.mark.parametrize("named", [True, False])
def test_a_chunk_that_decompresses_to_more_than_the_index_says(hashes: str, named: bool) -> None:
    """Its hash is right: who made the layer lies."""
    bomb = compressed(bytes(64 << 20), 64 << 20, hashes=hashes, says=4096, write_content_size=named)
    found, _ = source(bomb)
    assert found.size == 4096
    with pytest.raises(CorruptError, match="frame"):
        read(found, 0, 4096)


def test_a_chunk_that_is_too_large_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_MAX", 8000)
    found, blob = source(raw(DATA, 8192))
    with pytest.raises(ImageError, match=r"oci\.verify=none"):
        read(found, 0, 10)
    assert blob.asked == []
    found, blob = source(compressed(DATA, 8192))
    with pytest.raises(ImageError, match=r"make the layer with smaller ones"):
        read(found, 0, 10)
    assert blob.asked == []
    found, _ = source(raw(DATA, [4096, 4096, 20_000]))
    sink = Sink(0)
    with pytest.raises(ImageError, match="chunk at 8192 has 20000 bytes"):
        found.read_range(0, found.size, sink, whole=sink.whole, cancel=lambda: False)
    assert sink.data in (DATA[:4096], DATA[:8192])


@kinds
def test_the_rest_of_a_chunk_is_not_fetched_again(kind: str) -> None:
    """Where chunks are not of one size, runs cannot keep to them."""
    found, blob = source(LAYERS[kind])
    for at in range(0, len(DATA), 3000):
        length = min(3000, len(DATA) - at)
        assert read(found, at, length).data == DATA[at : at + length]
    asked = sorted(blob.asked)
    assert all(a + length <= b for (a, length), (b, _) in pairwise(asked))
    assert sum(length for _, length in asked) == sum(chunk.stored for chunk in chunks_of(described(LAYERS[kind])[1]))


def test_what_is_kept_for_that_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "RECENT_MAX", 12_000)
    found, blob = source(LAYERS["raw"])
    for at in (10, 5010, 10_010, 5010, 10_010):
        assert read(found, at, 100).data == DATA[at : at + 100]
    assert [first for first, _ in blob.asked] == [0, 5000, 10_000]
    read(found, 10, 100)
    assert [first for first, _ in blob.asked] == [0, 5000, 10_000, 0]


def test_pieces_out_of_order_are_a_bug() -> None:
    _, found = described(LAYERS["raw"])
    reader = ChunkReader(found.chunks, 0, 100, lambda at, piece: True, lambda: None, lambda number, content: None)
    reader.begin()
    with pytest.raises(ValueError, match="order"):
        reader.piece(7, b"x")
