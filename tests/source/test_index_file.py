"""Chunk indexes that are missing, unknown, wrong or of nobody's size, each in a layer at a registry."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyerofs.erofs import chunk_index
from pyerofs.errors import ImageError, PyerofsError, RegistryError
from pyerofs.source import index_file
from pyerofs.source import kinds as source_kinds
from tests.support.blobs import Rig
from tests.support.fakeregistry import FakeRegistry, status
from tests.support.images import Layer, digest_of
from tests.support.indexedlayers import CONTENT, KINDS, alone, compressed, frames, image, index_of, raw
from tests.support.scene import until

CHUNK = 8192
DATA = image(64)
kinds = pytest.mark.parametrize("kind", KINDS)


# What an index can lack


@pytest.mark.parametrize("layer", [Layer(DATA), raw(DATA, CHUNK, hashes="")], ids=["none", "without hashes"])
def test_require_refuses_what_cannot_be_verified(rig: Rig, layer: Layer) -> None:
    reference = rig.push(layer)
    with pytest.raises(ImageError, match=r"layer 0 has no chunk index with hashes.*oci\.verify=none"):
        rig.open(reference, "oci=0,oci.verify=require")
    assert rig.read(reference)[: len(DATA)] == DATA
    assert rig.blobs == [f"sha256/{layer.digest[7:]}"]


def test_require_refuses_compressed_layers_too(rig: Rig) -> None:
    for layer in (compressed(DATA, CHUNK, hashes=""), Layer(frames(DATA, CHUNK)[0], "application/vnd.erofs+zstd")):
        reference = rig.push(layer)
        with pytest.raises(ImageError, match="no chunk index with hashes"):
            rig.open(reference, "oci=0,oci.verify=require")


def test_a_compressed_layer_with_an_index_without_hashes(rig: Rig) -> None:
    """It is read lazily all the same, and verified as a whole when it is there."""
    layer = compressed(DATA, CHUNK, hashes="")
    reference = rig.push(layer)
    with rig.open(reference) as blob:
        assert blob.pread(100, 30 * CHUNK) == DATA[30 * CHUNK : 30 * CHUNK + 100]
        assert blob._export.verification == "unverified"
        assert len(rig.ranges) == 2
        assert blob.read() == DATA
        until(lambda: blob._export.verification == "verified", "verified")
    assert rig.blobs == [f"sha256+zstd/{layer.digest[7:]}"]


def test_one_that_is_not_its_content_stays_unverified(rig: Rig) -> None:
    """Nothing but the annotation vouches for what such a layer decompresses to."""
    layer = annotated(compressed(DATA, CHUNK, hashes=""), CONTENT, f"sha256:{'0' * 64}")
    with rig.open(rig.push(layer), "oci.fill=full") as blob:
        until(lambda: any("they stay unverified" in line for line in rig.log), "that it is told")
        assert blob._export.verification == "mismatch"
        assert blob.pread(100, 0) == DATA[:100]
    assert rig.entries == []


def annotated(layer: Layer, key: str, value: str) -> Layer:
    layer.annotations[key] = value
    return layer


def other_kind(layer: Layer) -> Layer:
    return annotated(layer, chunk_index.KIND, "application/vnd.other")


def with_byte(layer: Layer, at: int, value: int) -> Layer:
    """Another layer: its index has this byte, and the digest that it then has."""
    annotations = layer.annotations
    kind = str(layer.descriptor["mediaType"])
    start = int(annotations[chunk_index.RANGE].partition(":")[0]) + (8 if kind.endswith("+zstd") else 0)
    data = bytearray(layer.data)
    data[start + at] = value
    return Layer(bytes(data), kind, annotations={**annotations, chunk_index.DIGEST: digest_of(bytes(data[start:]))})


@kinds
@pytest.mark.parametrize("change", [other_kind, lambda layer: with_byte(layer, 4, 9)], ids=["kind", "version"])
def test_an_index_that_is_not_known_is_none(rig: Rig, kind: str, change: Callable[[Layer], Layer]) -> None:
    """A compressed layer is then one stream."""
    layer = change(KINDS[kind](DATA, CHUNK))
    reference = rig.push(layer)
    assert rig.read(reference) == (layer.data if kind == "raw" else DATA)
    assert rig.blobs == [f"sha256{'' if kind == 'raw' else '+zstd'}/{layer.digest[7:]}"]
    with pytest.raises(ImageError, match="no chunk index"):
        rig.open(reference, "oci=0,oci.verify=require")


@kinds
def test_an_index_that_breaks_a_rule_is_not_passed_over(rig: Rig, kind: str) -> None:
    """Its digest is right: who made the layer has made it wrong, and it is not read as if it had no index."""
    with pytest.raises(PyerofsError, match="a reserved byte is not zero"):
        rig.open(rig.push(with_byte(KINDS[kind](DATA, CHUNK), 22, 1)))
    assert rig.entries == []


@pytest.mark.parametrize("layer", [
    Layer(DATA + index_of([]), annotations=chunk_index.describe(len(DATA), index_of([]))),
    compressed(DATA, CHUNK, says=(1 << 44) + 1),
], ids=["empty", "endless"])  # fmt: skip
def test_an_image_of_a_size_that_none_has(rig: Rig, layer: Layer) -> None:
    with pytest.raises(ImageError, match="the chunk index says that the image has"):
        rig.open(rig.push(layer))
    assert rig.entries == []


@pytest.mark.parametrize(("most", "fits"), [(len(DATA), True), (len(DATA) - 1, False)])
def test_a_layer_that_is_larger_than_any(rig: Rig, monkeypatch: pytest.MonkeyPatch, most: int, fits: bool) -> None:
    monkeypatch.setattr(source_kinds, "SIZE_MAX", most)
    reference = rig.push(Layer(DATA))
    if fits:
        assert rig.read(reference) == DATA
    else:
        with pytest.raises(ImageError, match=f"says that it has {len(DATA)} bytes, more than EROFS can have"):
            rig.open(reference)
        assert rig.ranges == []


# The index itself


@kinds
@pytest.mark.parametrize("verify", ["auto", "require"])
def test_an_index_that_was_tampered_with(rig: Rig, kind: str, verify: str) -> None:
    layer = KINDS[kind](DATA, CHUNK)
    reference = rig.push(layer)
    rig.spoil(layer, len(layer.data) - 3)
    with pytest.raises(RegistryError, match="its digest is not"):
        rig.open(reference, f"oci=0,oci.verify={verify}")
    assert rig.entries == []


def test_an_index_that_is_good_at_another_mirror(rig: Rig) -> None:
    layer = raw(DATA, CHUNK)
    reference = rig.push(layer)
    with FakeRegistry() as bad:
        bad.blobs[layer.digest] = layer.data[:-1] + b"\0"
        assert rig.read(reference, f"oci=0,oci.mirror={bad.url}") == DATA


def test_the_index_is_tried_again(rig: Rig) -> None:
    reference = rig.push(raw(DATA, CHUNK))
    rig.fake.script(status(503), status(429))
    assert rig.read(reference) == DATA


@pytest.mark.parametrize("zstd", [False, True])
def test_a_stand_alone_index(rig: Rig, zstd: bool) -> None:
    body, index = frames(DATA, CHUNK) if zstd else (DATA, index_of([DATA[:CHUNK], DATA[CHUNK:]]))
    layer = Layer(body, "application/vnd.erofs+zstd") if zstd else Layer(body)
    reference = rig.push(*alone(layer, index))
    assert rig.read(reference, "oci.verify=require") == DATA  # the index is no layer to choose
    assert rig.entries[0].startswith("sha256+chunks/")
    rig.fake.blobs[Layer(index).digest] = index[:-1] + b"\xff"
    (rig.cache / rig.entries[0] / "index").unlink()
    with pytest.raises(RegistryError, match="its digest is not"):
        rig.open(reference, "oci.verify=require")


@pytest.mark.parametrize(("kind", "way_out"), [("raw", r"oci\.verify=none"), ("zstd", "with larger chunks")])
def test_an_index_that_is_too_large(rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str, way_out: str) -> None:
    monkeypatch.setattr(index_file, "SIZE_MAX", 1000)
    reference = rig.push(KINDS[kind](DATA, CHUNK))
    with pytest.raises(ImageError, match=f"more than .*{way_out}"):
        rig.open(reference)
    assert rig.ranges == []
