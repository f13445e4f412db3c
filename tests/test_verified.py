"""oci.verify over a registry: what a chunk index vouches for, and nothing else, is cached and served."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blobs import Rig
from fakeregistry import Exchange, FakeRegistry, honest, status
from images import FakePusher, Layer, digest_of, push_image
from indexedlayers import CONTENT, alone, compressed, cut, frames, image, index_of, raw, stream
from scene import until

import pyerofs
from pyerofs import chunkindex, cli, imagesource, indexed, indexfile
from pyerofs.errors import CorruptError, ImageError, PyerofsError, RegistryError
from pyerofs.layer import Layer as Described
from pyerofs.options import OCIOptions, parse_oci_options
from pyerofs.source import known_layers, open_image

CHUNK = 8192
DATA = image(64)


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


def push(rig: Rig, *layers: Layer, tag: str = "1") -> str:
    push_image(FakePusher(rig.fake), "app", tag, layers)
    return f"{rig.fake.host}/app:{tag}"


def spoil(rig: Rig, layer: Layer, *places: int) -> None:
    data = bytearray(layer.data)
    for at in places:
        data[at] ^= 0x10
    rig.fake.blobs[layer.digest] = bytes(data)


def read_all(rig: Rig, reference: str, options: str = "oci=0") -> bytes:
    with rig.open(reference, options) as blob:
        return blob.read()


def entries(rig: Rig) -> list[str]:
    """The cache's entries, as KIND/HEX."""
    return sorted(str(path.relative_to(rig.cache).parent) for path in rig.cache.glob("*/*/data"))


KINDS: dict[str, Callable[..., Layer]] = {"raw": raw, "zstd": compressed}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("verify", ["auto", "require", "none"])
def test_the_image_is_there(rig: Rig, kind: str, verify: str) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = push(rig, layer)
    with rig.open(reference, f"oci=0,oci.verify={verify}") as blob:
        unverified = kind == "raw" and verify == "none"
        assert blob.size == (len(layer.data) if unverified else len(DATA))
        assert blob.pread(len(DATA), 0) == DATA
        assert blob._export.verification == ("unverified" if unverified else "verified")
    (entry,) = entries(rig)
    assert entry.startswith("sha256/" if unverified else "sha256+chunks/")
    assert rig.log == []


@kinds
def test_a_cold_image_is_fetched_chunk_by_chunk_and_once(rig: Rig, kind: str) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = push(rig, layer)
    with rig.open(reference) as blob:
        before = len(rig.ranges)  # the index
        assert before == 1
        for at in range(CHUNK // 2, len(DATA) - 100, CHUNK * 5):
            assert blob.pread(100, at) == DATA[at : at + 100]
        assert blob.read() == DATA
    spans = sorted(rig.ranges[before:])
    index = next(iter(rig.ranges))
    assert [first for first, _ in spans[1:]] == [last + 1 for _, last in spans[:-1]]
    assert spans[0][0] == 0 and spans[-1][1] == index[0] - 1


@kinds
def test_every_place_flipped_is_caught_and_never_cached(rig: Rig, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "PASSES", 1)
    content = os.urandom(90) + bytes(150)
    layer = KINDS[kind](content, 48)
    reference = push(rig, layer)
    place = described(rig, reference).index
    assert place is not None
    for at in range(len(layer.data)):
        spoil(rig, layer, at)
        if at >= place.offset + (8 if place.frame else 0):
            with pytest.raises(RegistryError, match=r"digest|corrupt"):
                rig.open(reference)
            continue
        if at >= place.offset:  # the frame around the index
            with pytest.raises(RegistryError, match="frame"):
                rig.open(reference)
            continue
        with rig.open(reference) as blob:
            with pytest.raises(RegistryError, match="chunk at"):
                blob.read()
            assert blob._export.store.stats().present == 0
        rig.fake.blobs[layer.digest] = layer.data
        (entry,) = entries(rig)
        written = (rig.cache / entry / "data").read_bytes()
        assert all(byte in (0, content[n]) for n, byte in enumerate(written[: len(content)]))
        (rig.cache / entry / "index").unlink()
    rig.fake.blobs[layer.digest] = layer.data
    assert read_all(rig, reference) == content


def described(rig: Rig, reference: str) -> Described:
    source = open_image(reference, parse_oci_options([f"oci=0,oci.cache={rig.cache}"]))
    source.close()
    return source.origin


@kinds
def test_what_is_good_is_served_around_what_is_not(rig: Rig, kind: str) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = push(rig, layer)
    spoil(rig, layer, 10)  # in the first chunk
    with rig.open(reference) as blob:
        assert blob.pread(CHUNK, 10 * CHUNK) == DATA[10 * CHUNK : 11 * CHUNK]
        with pytest.raises(CorruptError, match=f"{rig.fake.host}: the chunk at 0"):
            blob.pread(1, 0)
        assert blob.pread(100, CHUNK) == DATA[CHUNK : CHUNK + 100]
        rig.fake.blobs[layer.digest] = layer.data
        assert blob.pread(len(DATA), 0) == DATA
    assert any("chunk at 0 is corrupt" in line for line in rig.log)


@kinds
def test_a_good_mirror_after_a_bad_one(rig: Rig, kind: str) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = push(rig, layer)
    with FakeRegistry() as bad:
        data = bytearray(layer.data)
        for at in range(0, len(layer.data), 3):
            data[at] ^= 1
        bad.blobs[layer.digest] = bytes(data)
        with rig.open(reference, f"oci=0,oci.mirror={bad.url}") as blob:
            assert blob.read() == DATA
        asked = len(bad.requests("/blobs/"))
        assert 1 <= asked <= 3  # for the index and, perhaps at the same time, for the beginning; then it is avoided
    assert any(bad.host in line and "corrupt" in line for line in rig.log)


def test_it_begins_to_be_wrong_later(rig: Rig) -> None:
    layer = raw(DATA, CHUNK)
    reference = push(rig, layer)
    with FakeRegistry() as bad:
        data = bytearray(layer.data)
        data[20 * CHUNK + 5] ^= 1
        bad.blobs[layer.digest] = bytes(data)
        assert read_all(rig, reference, f"oci=0,oci.mirror={bad.url}") == DATA
        assert rig.ranges[0][0] == 20 * CHUNK  # what had come before was good


def test_a_registry_that_ignores_ranges(rig: Rig) -> None:
    from fakeregistry import whole

    for layer in (raw(DATA, CHUNK), compressed(DATA, CHUNK)):
        reference = push(rig, layer)
        rig.fake.default = whole()
        assert read_all(rig, reference) == DATA
    rig.fake.default = honest


# What an index can lack


@pytest.mark.parametrize("layer", [Layer(DATA), raw(DATA, CHUNK, hashes="")], ids=["none", "without hashes"])
def test_require_refuses_what_cannot_be_verified(rig: Rig, layer: Layer) -> None:
    reference = push(rig, layer)
    with pytest.raises(ImageError, match=r"layer 0 has no chunk index with hashes.*oci\.verify=none"):
        rig.open(reference, "oci=0,oci.verify=require")
    assert read_all(rig, reference)[: len(DATA)] == DATA
    assert entries(rig) == [f"sha256/{layer.digest[7:]}"]


def test_require_refuses_compressed_layers_too(rig: Rig) -> None:
    for layer in (compressed(DATA, CHUNK, hashes=""), Layer(frames(DATA, CHUNK)[0], "application/vnd.erofs+zstd")):
        reference = push(rig, layer)
        with pytest.raises(ImageError, match="no chunk index with hashes"):
            rig.open(reference, "oci=0,oci.verify=require")


def test_a_compressed_layer_with_an_index_without_hashes(rig: Rig) -> None:
    """It is read lazily all the same, and verified as a whole when it is there."""
    layer = compressed(DATA, CHUNK, hashes="")
    reference = push(rig, layer)
    with rig.open(reference) as blob:
        assert blob.pread(100, 30 * CHUNK) == DATA[30 * CHUNK : 30 * CHUNK + 100]
        assert blob._export.verification == "unverified"
        assert len(rig.ranges) == 2
        assert blob.read() == DATA
        until(lambda: blob._export.verification == "verified", "verified")
    assert entries(rig) == [f"sha256+zstd/{layer.digest[7:]}"]


def test_one_that_is_not_its_content_stays_unverified(rig: Rig) -> None:
    """Nothing but the annotation vouches for what such a layer decompresses to."""
    layer = annotated(compressed(DATA, CHUNK, hashes=""), CONTENT, f"sha256:{'0' * 64}")
    with rig.open(push(rig, layer)) as blob:
        said = "they stay unverified"
        until(lambda: blob.pread(len(DATA), 0) == DATA and any(said in line for line in rig.log), said)
        assert blob._export.verification == "mismatch"
    assert not (rig.cache / entries(rig)[0] / "verified").exists()


def annotated(layer: Layer, key: str, value: str) -> Layer:
    layer.descriptor["annotations"][key] = value  # type: ignore[index]
    return layer


def other_kind(layer: Layer) -> Layer:
    return annotated(layer, chunkindex.KIND, "application/vnd.other")


def with_byte(layer: Layer, at: int, value: int) -> Layer:
    """Another layer: its index has this byte, and the digest that it then has."""
    annotations: dict[str, str] = layer.descriptor["annotations"]  # type: ignore[assignment]
    kind = str(layer.descriptor["mediaType"])
    start = int(annotations[chunkindex.RANGE].partition(":")[0]) + (8 if kind.endswith("+zstd") else 0)
    data = bytearray(layer.data)
    data[start + at] = value
    return Layer(bytes(data), kind, **{**annotations, chunkindex.DIGEST: digest_of(data[start:])})


@kinds
@pytest.mark.parametrize("change", [other_kind, lambda layer: with_byte(layer, 4, 9)], ids=["kind", "version"])
def test_an_index_that_is_not_known_is_none(rig: Rig, kind: str, change: Callable[[Layer], Layer]) -> None:
    """A compressed layer is then one stream."""
    layer = change(KINDS[kind](DATA, CHUNK))
    reference = push(rig, layer)
    assert read_all(rig, reference) == (layer.data if kind == "raw" else DATA)
    assert entries(rig) == [f"sha256{'' if kind == 'raw' else '+zstd'}/{layer.digest[7:]}"]
    with pytest.raises(ImageError, match="no chunk index"):
        rig.open(reference, "oci=0,oci.verify=require")


@kinds
def test_an_index_that_breaks_a_rule_is_not_passed_over(rig: Rig, kind: str) -> None:
    """Its digest is right: who made the layer has made it wrong, and it is not read as if it had no index."""
    with pytest.raises(PyerofsError, match="a reserved byte is not zero"):
        rig.open(push(rig, with_byte(KINDS[kind](DATA, CHUNK), 22, 1)))
    assert entries(rig) == []


@pytest.mark.parametrize("layer", [
    Layer(DATA + index_of([]), **chunkindex.describe(len(DATA), index_of([]))),
    compressed(DATA, CHUNK, says=(1 << 44) + 1),
], ids=["empty", "endless"])  # fmt: skip
def test_an_image_of_a_size_that_none_has(rig: Rig, layer: Layer) -> None:
    with pytest.raises(ImageError, match="the chunk index says that the image has"):
        rig.open(push(rig, layer))
    assert entries(rig) == []


@pytest.mark.parametrize(("most", "fits"), [(len(DATA), True), (len(DATA) - 1, False)])
def test_a_layer_that_is_larger_than_any(rig: Rig, monkeypatch: pytest.MonkeyPatch, most: int, fits: bool) -> None:
    monkeypatch.setattr(imagesource, "SIZE_MAX", most)
    reference = push(rig, Layer(DATA))
    if fits:
        assert read_all(rig, reference) == DATA
    else:
        with pytest.raises(ImageError, match=f"says that it has {len(DATA)} bytes, more than EROFS can have"):
            rig.open(reference)
        assert rig.ranges == []


# The index itself


@kinds
@pytest.mark.parametrize("verify", ["auto", "require"])
def test_an_index_that_was_tampered_with(rig: Rig, kind: str, verify: str) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = push(rig, layer)
    spoil(rig, layer, len(layer.data) - 3)
    with pytest.raises(RegistryError, match="has not the digest"):
        rig.open(reference, f"oci=0,oci.verify={verify}")
    assert entries(rig) == []


def test_an_index_that_is_good_at_another_mirror(rig: Rig) -> None:
    layer = raw(DATA, CHUNK)
    reference = push(rig, layer)
    with FakeRegistry() as bad:
        bad.blobs[layer.digest] = layer.data[:-1] + b"\0"
        assert read_all(rig, reference, f"oci=0,oci.mirror={bad.url}") == DATA


def test_the_index_is_tried_again(rig: Rig) -> None:
    reference = push(rig, raw(DATA, CHUNK))
    rig.fake.script(status(503), status(429))
    assert read_all(rig, reference) == DATA


@pytest.mark.parametrize("zstd", [False, True])
def test_a_stand_alone_index(rig: Rig, zstd: bool) -> None:
    body, index = frames(DATA, CHUNK) if zstd else (DATA, index_of([DATA[:CHUNK], DATA[CHUNK:]]))
    layer = Layer(body, "application/vnd.erofs+zstd") if zstd else Layer(body)
    reference = push(rig, *alone(layer, index))
    assert read_all(rig, reference, "oci.verify=require") == DATA  # the index is no layer to choose
    assert entries(rig)[0].startswith("sha256+chunks/")
    rig.fake.blobs[Layer(index).digest] = index[:-1] + b"\xff"
    (rig.cache / entries(rig)[0] / "index").unlink()
    with pytest.raises(RegistryError, match="has not the digest"):
        rig.open(reference, "oci.verify=require")


@pytest.mark.parametrize(("kind", "way_out"), [("raw", r"oci\.verify=none"), ("zstd", "with larger chunks")])
def test_an_index_that_is_too_large(rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str, way_out: str) -> None:
    monkeypatch.setattr(indexfile, "SIZE_MAX", 1000)
    reference = push(rig, KINDS[kind](DATA, CHUNK))
    with pytest.raises(ImageError, match=f"more than .*{way_out}"):
        rig.open(reference)
    assert rig.ranges == []


# The cache


@kinds
def test_a_cached_image_opens_with_the_registry_away(rig: Rig, kind: str) -> None:
    reference = push(rig, KINDS[kind](DATA, CHUNK))
    assert read_all(rig, reference) == DATA
    rig.fake.default = status(500)
    for _ in range(2):
        assert read_all(rig, reference, "oci=0,oci.verify=require") == DATA


@kinds
def test_an_index_in_the_cache_that_was_tampered_with_is_fetched_anew(rig: Rig, kind: str) -> None:
    reference = push(rig, KINDS[kind](DATA, CHUNK))
    assert read_all(rig, reference) == DATA
    path = rig.cache / entries(rig)[0] / "index"
    good = path.read_bytes()
    for bad in (b"", good[:-1], good + b"x", b"x" * len(good)):
        path.write_bytes(bad)
        asked = len(rig.ranges)
        assert read_all(rig, reference) == DATA
        assert len(rig.ranges) == asked + 1
        assert path.read_bytes() == good


def test_what_came_without_a_check_does_not_count(rig: Rig) -> None:
    """All of it is in the cache from a time without verification, and wrong."""
    layer = raw(DATA, CHUNK)
    reference = push(rig, layer)
    rig.fake.blobs[layer.digest] = bytes(len(layer.data))
    assert read_all(rig, reference, "oci=0,oci.verify=none") == bytes(len(layer.data))
    rig.fake.blobs[layer.digest] = layer.data
    assert read_all(rig, reference, "oci=0,oci.verify=require") == DATA
    assert len(entries(rig)) == 2


def test_two_indexes_of_one_layer_do_not_share_an_entry(rig: Rig) -> None:
    """Anybody may push a manifest that gives somebody else's layer an index of his own, and serve what fits that."""
    layer = raw(DATA, CHUNK)
    evil_data = bytes(len(DATA))
    evil_index = index_of(cut(evil_data, CHUNK))
    evil = Layer(layer.data, **chunkindex.describe(len(DATA), evil_index))
    reference, other = push(rig, layer, tag="1"), push(rig, evil, tag="2")
    rig.fake.blobs[layer.digest] = evil_data + evil_index
    assert read_all(rig, other, "oci=0,oci.verify=require") == evil_data
    rig.fake.blobs[layer.digest] = layer.data
    assert read_all(rig, reference, "oci=0,oci.verify=require") == DATA


def test_a_cache_that_lost_its_index_while_the_registry_is_away(rig: Rig) -> None:
    reference = push(rig, raw(DATA, CHUNK))
    assert read_all(rig, reference) == DATA
    (rig.cache / entries(rig)[0] / "index").unlink()
    rig.fake.default = status(404)
    with pytest.raises(RegistryError):
        rig.open(reference)


# A worker that takes another one's place


@kinds
@pytest.mark.parametrize("verify", ["auto", "require", "none"])
def test_a_layer_is_opened_again_without_its_registry(rig: Rig, kind: str, verify: str) -> None:
    reference = push(rig, KINDS[kind](DATA, CHUNK))
    options = parse_oci_options([f"oci=0,oci.verify={verify},oci.cache={rig.cache}"])
    assert read_all(rig, reference, f"oci=0,oci.verify={verify}")[: len(DATA)] == DATA
    source = open_image(reference, options)
    source.close()
    asked = len(rig.fake.requests())
    again = known_layers(source.name, [(Described.from_dict(source.origin.as_dict()), source.size)], options)[0](print)
    again.close()
    assert (again.size, again.storage, again.origin) == (source.size, source.storage, source.origin)
    assert len(rig.fake.requests()) == asked


def test_one_that_would_not_be_the_same_is_refused(rig: Rig) -> None:
    reference = push(rig, raw(DATA, CHUNK))
    options = OCIOptions(cache=str(rig.cache))
    source = open_image(reference, options)
    source.close()
    with pytest.raises(ImageError, match="bytes"):
        known_layers(source.name, [(source.origin, source.size + 4096)], options)[0](print)


# All of it: reads at random, mirrors that are wrong at random


def test_random_reads_over_random_layouts(rig: Rig) -> None:
    import random

    for seed in range(6):
        rng = random.Random(seed)
        content = image(rng.randrange(20, 200), seed)
        sizes = [rng.randrange(1, 40_000) for _ in range(rng.randrange(60))]
        layer = rng.choice(list(KINDS.values()))(content, sizes if seed % 2 else rng.choice([4096, 16_384, 10_000]))
        reference = push(rig, layer, tag=str(seed))

        def sometimes(exchange: Exchange, rng: random.Random = rng) -> None:
            first, end = exchange.range
            data = bytearray(exchange.blob[first:end])
            if rng.random() < 0.3:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            exchange.partial(bytes(data))

        with FakeRegistry(sometimes) as liar:
            liar.blobs = rig.fake.blobs
            with rig.open(reference, f"oci=0,oci.verify=require,oci.mirror={liar.url}") as blob:
                for _ in range(60):
                    at = rng.randrange(len(content))
                    length = rng.randrange(1, 50_000)
                    assert blob.pread(length, at) == content[at : at + length]
                assert blob.read() == content


@pytest.fixture(autouse=True)
def one_line_each(rig: Rig) -> Iterator[None]:
    yield
    assert not any("\n" in line for line in rig.log)
    assert not [line for line in rig.log if re.search(r"Traceback|internal", line)]


def test_a_local_file_is_not_concerned(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    with pyerofs.open_blob(str(tmp_path / "file")) as blob:
        assert blob.read() == DATA
    with pytest.raises(PyerofsError):
        pyerofs.open_blob(str(tmp_path / "file"), "oci.verify=require")


# `pyerofs cache`


def cache(rig: Rig, capsys: pytest.CaptureFixture[str], action: str, *arguments: str) -> tuple[int, str]:
    status = cli.main(["cache", action, "--dir", str(rig.cache), *arguments])
    return status, capsys.readouterr().out


@kinds
def test_the_cache_lists_verifies_and_removes_them(rig: Rig, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = push(rig, layer)
    with rig.open(reference) as blob:
        blob.pread(10, 0)
        (row,) = json.loads(cache(rig, capsys, "ls", "--json")[1])
        assert row["in_use"] and not row["complete"] and not row["verified"]
        blob.read()
    (row,) = json.loads(cache(rig, capsys, "ls", "--json")[1])
    digest = row["digest"]
    assert digest.startswith("sha256+chunks:") and row["complete"] and row["verified"]
    verdict = {"raw": "verified", "zstd": "verified as it came; it was decompressed, and there is no hash of that"}[
        kind
    ]
    assert cache(rig, capsys, "verify")[1].startswith(f"{digest}  {verdict}")
    if kind == "raw":
        data = rig.cache / entries(rig)[0] / "data"
        with data.open("r+b") as file:
            file.seek(100_000)
            file.write(b"spoiled")
        status, out = cache(rig, capsys, "verify", digest[:25])
        assert status == 32 and "removed: it has a chunk" in out
        assert entries(rig) == []
        assert read_all(rig, reference) == DATA
    assert cache(rig, capsys, "rm", digest)[0] == 0
    assert entries(rig) == []


def test_the_cache_lists_streamed_ones(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    with rig.open(push(rig, stream(DATA))) as blob:
        until(lambda: blob._export.verification == "verified", "verified")
    (row,) = json.loads(cache(rig, capsys, "ls", "--json")[1])
    assert row["digest"].startswith("sha256+zstd:") and row["verified"]
    assert "  verified as it came; " in cache(rig, capsys, "verify")[1]
    (rig.cache / entries(rig)[0] / "verified").unlink()
    assert "  not verified; " in cache(rig, capsys, "verify")[1]
    assert "removed 1 blob" in cache(rig, capsys, "gc", "--max", "1K")[1]
