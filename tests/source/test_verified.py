"""oci.verify over a registry: what a chunk index vouches for, and nothing else, is cached and served."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import pyerofs
from pyerofs.cli import main
from pyerofs.config.options import ReadOptions, parse_oci_options
from pyerofs.context import NOBODY
from pyerofs.erofs import chunk_index
from pyerofs.erofs.layer import Layer as Described
from pyerofs.errors import CorruptError, ImageError, PyerofsError, RegistryError
from pyerofs.oci.location import Location
from pyerofs.source import chunked
from pyerofs.source.open import open_layer, reopen_layers
from tests.support.blobs import Rig
from tests.support.fakeregistry import Exchange, FakeRegistry, honest, status
from tests.support.images import Layer
from tests.support.indexedlayers import KINDS, compressed, cut, image, index_of, raw, stream
from tests.support.scene import until

CHUNK = 8192
DATA = image(64)
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("verify", ["auto", "require", "none"])
def test_the_image_is_there(rig: Rig, kind: str, verify: str) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = rig.push(layer)
    with rig.open(reference, f"oci=0,oci.verify={verify}") as blob:
        unverified = kind == "raw" and verify == "none"
        assert blob.size == (len(layer.data) if unverified else len(DATA))
        assert blob.pread(len(DATA), 0) == DATA
        assert blob._export.verification == ("unverified" if unverified else "verified")
    (entry,) = rig.entries
    assert entry.startswith("sha256/" if unverified else "sha256+chunks/")
    assert rig.log == []


@kinds
def test_a_cold_image_is_fetched_chunk_by_chunk_and_once(rig: Rig, kind: str) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = rig.push(layer)
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
    monkeypatch.setattr(chunked, "PASSES", 1)
    content = os.urandom(90) + bytes(150)
    layer = KINDS[kind](content, 48)
    reference = rig.push(layer)
    place = described(rig, reference).index
    assert place is not None
    for at in range(len(layer.data)):
        rig.spoil(layer, at)
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
        (entry,) = rig.entries
        written = (rig.cache / entry / "data").read_bytes()
        assert all(byte in (0, content[n]) for n, byte in enumerate(written[: len(content)]))
        (rig.cache / entry / "index").unlink()
    rig.fake.blobs[layer.digest] = layer.data
    assert rig.read(reference) == content


def described(rig: Rig, reference: str) -> Described:
    source = open_layer(Location.parse(reference), parse_oci_options([f"oci=0,oci.cache={rig.cache}"]))
    source.close()
    return source.origin


@kinds
def test_what_is_good_is_served_around_what_is_not(rig: Rig, kind: str) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = rig.push(layer)
    rig.spoil(layer, 10)  # in the first chunk
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
    reference = rig.push(layer)
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
    reference = rig.push(layer)
    with FakeRegistry() as bad:
        data = bytearray(layer.data)
        data[20 * CHUNK + 5] ^= 1
        bad.blobs[layer.digest] = bytes(data)
        assert rig.read(reference, f"oci=0,oci.mirror={bad.url}") == DATA
        assert rig.ranges[0][0] == 20 * CHUNK  # what had come before was good


def test_a_registry_that_ignores_ranges(rig: Rig) -> None:
    from tests.support.fakeregistry import whole

    for layer in (raw(DATA, CHUNK), compressed(DATA, CHUNK)):
        reference = rig.push(layer)
        rig.fake.default = whole()
        assert rig.read(reference) == DATA
    rig.fake.default = honest


# The cache


@kinds
def test_a_cached_image_opens_with_the_registry_away(rig: Rig, kind: str) -> None:
    reference = rig.push(KINDS[kind](DATA, CHUNK))
    assert rig.read(reference) == DATA
    rig.fake.default = status(500)
    for _ in range(2):
        assert rig.read(reference, "oci=0,oci.verify=require") == DATA


@kinds
def test_an_index_in_the_cache_that_was_tampered_with_is_fetched_anew(rig: Rig, kind: str) -> None:
    reference = rig.push(KINDS[kind](DATA, CHUNK))
    assert rig.read(reference) == DATA
    path = rig.cache / rig.entries[0] / "index"
    good = path.read_bytes()
    for bad in (b"", good[:-1], good + b"x", b"x" * len(good)):
        path.write_bytes(bad)
        asked = len(rig.ranges)
        assert rig.read(reference) == DATA
        assert len(rig.ranges) == asked + 1
        assert path.read_bytes() == good


def test_what_came_without_a_check_does_not_count(rig: Rig) -> None:
    """All of it is in the cache from a time without verification, and wrong."""
    layer = raw(DATA, CHUNK)
    reference = rig.push(layer)
    rig.fake.blobs[layer.digest] = bytes(len(layer.data))
    with rig.open(reference, "oci=0,oci.verify=none") as blob:
        blob.seek(1)
        assert blob.read() == bytes(len(layer.data) - 1)
    rig.fake.blobs[layer.digest] = layer.data
    assert rig.read(reference, "oci=0,oci.verify=require") == DATA
    assert len(rig.entries) == 2


def test_two_indexes_of_one_layer_do_not_share_an_entry(rig: Rig) -> None:
    """Anybody may push a manifest that gives somebody else's layer an index of his own, and serve what fits that."""
    layer = raw(DATA, CHUNK)
    evil_data = bytes(len(DATA))
    evil_index = index_of(cut(evil_data, CHUNK))
    evil = Layer(layer.data, annotations=chunk_index.describe(len(DATA), evil_index))
    reference, other = rig.push(layer, tag="1"), rig.push(evil, tag="2")
    rig.fake.blobs[layer.digest] = evil_data + evil_index
    assert rig.read(other, "oci=0,oci.verify=require") == evil_data
    rig.fake.blobs[layer.digest] = layer.data
    assert rig.read(reference, "oci=0,oci.verify=require") == DATA


def test_a_cache_that_lost_its_index_while_the_registry_is_away(rig: Rig) -> None:
    reference = rig.push(raw(DATA, CHUNK))
    assert rig.read(reference) == DATA
    (rig.cache / rig.entries[0] / "index").unlink()
    rig.fake.default = status(404)
    with pytest.raises(RegistryError):
        rig.open(reference)


# A worker that takes another one's place


@kinds
@pytest.mark.parametrize("verify", ["auto", "require", "none"])
def test_a_layer_is_opened_again_without_its_registry(rig: Rig, kind: str, verify: str) -> None:
    reference = rig.push(KINDS[kind](DATA, CHUNK))
    options = parse_oci_options([f"oci=0,oci.verify={verify},oci.cache={rig.cache}"])
    assert rig.read(reference, f"oci=0,oci.verify={verify}")[: len(DATA)] == DATA
    source = open_layer(Location.parse(reference), options)
    source.close()
    asked = len(rig.fake.requests())
    again = reopen_layers(
        Location.parse(source.name), [(Described.from_dict(source.origin.as_dict()), source.size)], options
    )[0](NOBODY)
    again.close()
    assert (again.size, again.storage, again.origin) == (source.size, source.storage, source.origin)
    assert len(rig.fake.requests()) == asked


def test_one_that_would_not_be_the_same_is_refused(rig: Rig) -> None:
    reference = rig.push(raw(DATA, CHUNK))
    options = ReadOptions(cache=str(rig.cache))
    source = open_layer(Location.parse(reference), options)
    source.close()
    with pytest.raises(ImageError, match="bytes"):
        reopen_layers(Location.parse(source.name), [(source.origin, source.size + 4096)], options)[0](NOBODY)


# All of it: reads at random, mirrors that are wrong at random


def test_random_reads_over_random_layouts(rig: Rig) -> None:
    import random

    for seed in range(6):
        rng = random.Random(seed)
        content = image(rng.randrange(20, 200), seed)
        sizes = [rng.randrange(1, 40_000) for _ in range(rng.randrange(60))]
        layer = rng.choice(list(KINDS.values()))(content, sizes if seed % 2 else rng.choice([4096, 16_384, 10_000]))
        reference = rig.push(layer, tag=str(seed))

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


def test_a_local_file_is_not_concerned(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    with pyerofs.open_blob(str(tmp_path / "file")) as blob:
        assert blob.read() == DATA
    with pytest.raises(PyerofsError):
        pyerofs.open_blob(str(tmp_path / "file"), "oci.verify=require")


# `pyerofs cache`


def cache(rig: Rig, capsys: pytest.CaptureFixture[str], action: str, *arguments: str) -> tuple[int, str]:
    status = main.main(["cache", action, "--dir", str(rig.cache), *arguments])
    return status, capsys.readouterr().out


@kinds
def test_the_cache_lists_verifies_and_removes_them(rig: Rig, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = rig.push(layer)
    with rig.open(reference) as blob:
        blob.pread(10, 0)
        (row,) = json.loads(cache(rig, capsys, "ls", "--json")[1])
        assert row["in_use"] and not row["complete"] and not row["verified"]
        blob.read()
    (row,) = json.loads(cache(rig, capsys, "ls", "--json")[1])
    digest = row["digest"]
    assert digest.startswith("sha256+chunks:") and row["complete"] and row["verified"]
    verdict = {
        "raw": "verified",
        "zstd": "verified as it was fetched; it was decompressed, and no hash of the result is known",
    }[kind]
    assert cache(rig, capsys, "verify")[1].startswith(f"{digest}  {verdict}")
    if kind == "raw":
        data = rig.cache / rig.entries[0] / "data"
        with data.open("r+b") as file:
            file.seek(100_000)
            file.write(b"spoiled")
        status, out = cache(rig, capsys, "verify", digest[:25])
        assert status == 32 and "removed: a chunk does not match" in out
        assert rig.entries == []
        assert rig.read(reference) == DATA
    assert cache(rig, capsys, "rm", digest)[0] == 0
    assert rig.entries == []


def test_the_cache_lists_streamed_ones(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    with rig.open(rig.push(stream(DATA))) as blob:
        until(lambda: blob._export.verification == "verified", "verified")
    (row,) = json.loads(cache(rig, capsys, "ls", "--json")[1])
    assert row["digest"].startswith("sha256+zstd:") and row["verified"]
    assert cache(rig, capsys, "verify")[1].endswith("  verified\n")
    (rig.cache / rig.entries[0] / "verified").unlink()
    assert "  not verified; " in cache(rig, capsys, "verify")[1]
    assert "removed 1 blob" in cache(rig, capsys, "gc", "--max", "1K")[1]
