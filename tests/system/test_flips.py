"""A large image, a byte of which the registry changes on its way: wherever that is, no byte of its chunk is served or
kept, and a good mirror mends it. tests/source/test_verified.py does this with all places of a small one."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pyerofs.erofs import chunk_index
from pyerofs.errors import CorruptError, RegistryError
from pyerofs.source import chunked
from tests.support.blobs import Rig
from tests.support.fakeregistry import Exchange, FakeRegistry, honest
from tests.support.images import FakePusher, Layer, push_image
from tests.support.indexedlayers import KINDS
from tests.support.trees import MIB, make_image, make_tree

CHUNK = 128 << 10
PLACES = 120  # in each kind of layer


class Large(NamedTuple):
    content: bytes
    layer: Layer
    chunks: chunk_index.ChunkIndex
    end: int  # of the chunks in the blob


@pytest.fixture(scope="module")
def content(work: Path) -> bytes:
    """An EROFS image of more than 64 MiB, the last chunk of which is not a whole one."""
    tree = make_tree(work / "large tree", large=66 * MIB + 5, many=300)
    data = make_image(tree.root, work / "large.erofs").read_bytes()
    assert len(data) > 64 * MIB
    return data if len(data) % CHUNK else data + bytes(4096)


@pytest.fixture(scope="module", params=KINDS)
def large(request: pytest.FixtureRequest, content: bytes) -> Large:
    layer = KINDS[request.param](content, CHUNK)
    annotations = layer.descriptor["annotations"]
    assert isinstance(annotations, dict)
    place = chunk_index.locate(annotations, len(layer.data), request.param == "zstd")
    assert place is not None
    index = chunk_index.parse(layer.data[place.offset : place.end], place)
    assert index is not None and len(index) > 500
    return Large(content, layer, index, place.offset)


def flipping(*places: int) -> Callable[[Exchange], None]:
    """A registry that answers with one bit changed at each of these places of the blob."""

    def answer(exchange: Exchange) -> None:
        first, end = exchange.range
        data = bytearray(exchange.blob[first:end])
        for at in places:
            if first <= at < end:
                data[at - first] ^= 1 << at % 8
        exchange.partial(bytes(data))

    return answer


def numbers(large: Large, rng: random.Random) -> list[int]:
    """Chunks, each once: the first, the one with the root's inode, the last two, and any."""
    block, root = (
        struct.unpack_from("<I", large.content, 1024 + 40)[0],
        struct.unpack_from("<H", large.content, 1038)[0],
    )
    certain = {0, (block * 4096 + root * 32) // CHUNK, len(large.chunks) - 2, len(large.chunks) - 1}
    others = [number for number in range(len(large.chunks)) if number not in certain]
    return [*sorted(certain), *rng.sample(others, PLACES - len(certain))]


def place_in(chunk: chunk_index.Chunk, turn: int, rng: random.Random) -> int:
    """A place in the blob: the superblock, a chunk's first or last byte, or any."""
    if chunk.start == 0:
        return chunk.offset + min(1024 + rng.randrange(128), chunk.stored - 1)
    return chunk.offset + (0, chunk.stored - 1, rng.randrange(chunk.stored))[turn % 3]


def push(rig: Rig, large: Large) -> str:
    push_image(FakePusher(rig.fake), "app", "1", [large.layer])
    return f"{rig.fake.host}/app:1"


def test_it_fails_and_nothing_of_it_is_kept(rig: Rig, large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "PASSES", 1)
    rng = random.Random(41)
    chosen = numbers(large, rng)
    places = [place_in(large.chunks.chunk(number), turn, rng) for turn, number in enumerate(chosen)]
    rig.fake.default = flipping(*places)
    with rig.open(push(rig, large)) as blob:
        for number in chosen:
            chunk = large.chunks.chunk(number)
            with pytest.raises(CorruptError, match=r"the chunk at \d+ is corrupt"):
                blob.pread(1, chunk.start + rng.randrange(chunk.length))
        for number in set(range(len(large.chunks))) - set(chosen):
            chunk = large.chunks.chunk(number)
            assert blob.pread(chunk.length, chunk.start) == large.content[chunk.start : chunk.start + chunk.length]
        assert blob._export.store.stats().present > 0
        (data,) = rig.cache.glob("*/*/data")
        kept = data.read_bytes()
        for chunk in map(large.chunks.chunk, chosen):
            assert not any(kept[chunk.start : chunk.start + chunk.length])
        rig.fake.default = honest
        assert blob.read() == large.content


def test_a_good_mirror_mends_it(rig: Rig, large: Large) -> None:
    rng = random.Random(42)
    with FakeRegistry() as liar:
        liar.blobs = rig.fake.blobs
        for number in numbers(large, rng)[:10]:
            chunk = large.chunks.chunk(number)
            liar.default = flipping(place_in(chunk, number, rng))
            rig.cache = rig.cache.with_name(f"cache {number}")
            with rig.open(push(rig, large), f"oci=0,oci.verify=require,oci.mirror={liar.url}") as blob:
                found = blob.pread(chunk.length, chunk.start)
            assert found == large.content[chunk.start : chunk.start + chunk.length]
            assert [line for line in rig.log if f"{liar.host}: the chunk at {chunk.start} is corrupt" in line]


def test_the_index_itself(rig: Rig, large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "PASSES", 1)
    rng = random.Random(43)
    reference = push(rig, large)
    for _ in range(20):
        rig.fake.default = flipping(rng.randrange(large.end, len(large.layer.data)))
        with pytest.raises(RegistryError, match=r"digest|corrupt|frame"):
            rig.open(reference)
    assert list(rig.cache.glob("*/*/data")) == []
    rig.fake.default = honest
    with rig.open(reference) as blob:
        assert blob.pread(4096, 0) == large.content[:4096]


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)
