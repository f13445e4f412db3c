"""What a manifest says of a layer."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from pyerofs.erofs import chunk_index
from pyerofs.erofs.chunk_index import IndexLocation, parse
from pyerofs.erofs.layer import TARGET, describe, section_of
from pyerofs.erofs.layer import Layer as Described
from pyerofs.errors import ImageError
from pyerofs.oci.manifest import Manifest
from pyerofs.oci.manifest import parse as parse_manifest
from tests.support.images import EROFS, TAR, Layer
from tests.support.indexedlayers import CONTENT, INDEX, ZSTD, alone, compressed, image, index_of, raw

DATA = image(4)


def manifest(*layers: Layer) -> Manifest:
    found = parse_manifest(json.dumps({"schemaVersion": 2, "layers": [layer.descriptor for layer in layers]}).encode())
    assert isinstance(found, Manifest)
    return found


def test_a_layer_without_an_index() -> None:
    layer = Layer(DATA)
    found = describe(manifest(Layer(b"x", TAR), layer), 1)
    assert found == Described(1, layer.digest, len(DATA), content=layer.digest)
    assert describe(manifest(Layer(b"x", TAR), Layer(DATA, annotations={"org.erofs.unheard": "x"})), 1) == found
    assert found.plain_key == layer.digest


def test_an_embedded_index() -> None:
    layer = raw(DATA, 5000)
    found = describe(manifest(layer), 0)
    index = index_of([DATA[:5000], DATA[5000:10000], DATA[10000:15000], DATA[15000:]])
    assert found.index is not None and found.index[:2] == (len(DATA), len(DATA) + len(index))
    assert found.verified_key == found.index.digest.replace("sha256:", "sha256+chunks:")
    assert not found.alone
    assert describe(manifest(layer), 0, use_index=False).index is None


def test_a_compressed_layer() -> None:
    layer = compressed(DATA, 4096)
    for use_index in (True, False):  # without it nothing could be found in it
        found = describe(manifest(layer), 0, use_index=use_index)
        assert found.compressed and found.index is not None and found.index.frame
        assert found.content == layer.annotations[CONTENT]
    assert found.plain_key == layer.digest.replace("sha256:", "sha256+zstd:")


@pytest.mark.parametrize("zstd", [False, True])
def test_a_stand_alone_index(zstd: bool) -> None:
    if zstd:
        whole = compressed(DATA, 4096)
        at = int(whole.annotations[chunk_index.RANGE])
        blob, index = Layer(whole.data[:at], ZSTD), whole.data[at + 8 :]
    else:
        blob, index = Layer(DATA), index_of([DATA])
    found = describe(manifest(*alone(blob, index), Layer(b"z")), 0)
    assert found.alone and found.alone_size == len(index) and found.index is not None
    assert found.index.offset == len(blob.data)
    read = parse(section_of(index, found.index), found.index)
    assert read is not None and read.size == len(DATA)
    last = read.chunk(len(read) - 1)
    assert last.offset + last.stored == len(blob.data)


def test_a_stand_alone_index_for_another_layer() -> None:
    layer, index = alone(Layer(DATA), index_of([DATA]))
    with pytest.raises(ImageError, match=r"for another one: its org\.erofs\.chunk-index\.target is 'sha256:"):
        describe(manifest(Layer(DATA + DATA), index), 0)
    with pytest.raises(ImageError, match="is None"):
        describe(manifest(layer, Layer(index_of([DATA]), INDEX)), 0)
    assert describe(manifest(layer, Layer(b"x", TAR), index), 0).index is None  # not right behind it
    later = Layer(index.data, "application/vnd.erofs.chunk-index.v2", annotations={TARGET: layer.digest})
    assert describe(manifest(layer, later), 0).index is None
    assert describe(manifest(Layer(DATA + DATA), index), 0, use_index=False).index is None


def test_the_embedded_one_is_preferred() -> None:
    embedded = raw(DATA, 4096)
    found = describe(manifest(*alone(embedded, index_of([DATA]))), 0)
    assert not found.alone


@pytest.mark.parametrize("layer", [Layer(DATA), raw(DATA, 4096), compressed(DATA), *alone(Layer(DATA), b"x" * 40)[:1]])
def test_a_layer_survives_json(layer: Layer) -> None:
    found = describe(manifest(layer), 0)
    again = Described.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again == found
    assert again.index is None or isinstance(again.index, IndexLocation)


@pytest.mark.parametrize(("annotations", "text"), [
    ({chunk_index.RANGE: "x", chunk_index.DIGEST: "sha256:" + "0" * 64}, "malformed"),
    ({chunk_index.RANGE: "1", chunk_index.DIGEST: "sha256:0"}, "not a sha256"),
])  # fmt: skip
def test_annotations_that_are_malformed(annotations: dict[str, str], text: str) -> None:
    bad = Layer(DATA, EROFS, annotations=annotations)
    with pytest.raises(ImageError, match=text):
        describe(manifest(bad), 0)
    assert describe(manifest(bad), 0, use_index=False).index is None


def test_a_content_digest_that_is_none() -> None:
    with pytest.raises(ImageError, match="uncompressed-digest is not a sha256"):
        describe(manifest(Layer(DATA, ZSTD, annotations={CONTENT: "md5:0"})), 0)


def test_keys_of_what_nothing_vouches_for_yet() -> None:
    """A giver's, until the whole has its digest; then of all who trust the same digests."""
    layer, data = Layer(DATA), Layer(DATA).digest
    found = describe(manifest(layer), 0)
    assert found.shared_key() == data
    assert re.fullmatch(rf"{data}@[0-9a-f]{{32}}", found.given_key("a/b"))
    assert found.given_key("a/b") != found.given_key("a/c")
    assert found.given_key("a/b") != describe(manifest(Layer(DATA, size=5)), 0).given_key("a/b")
    assert describe(manifest(Layer(DATA, size=5)), 0).shared_key() == data


def test_keys_of_what_is_decompressed() -> None:
    layer = compressed(DATA, 4096, hashes="")
    found = describe(manifest(layer), 0)
    other = replace(found, content=Layer(b"x").digest)
    bare = replace(found, content="")
    keys = [
        key
        for each in (found, other, bare)
        for by_index in (False, True)
        for key in (each.shared_key(by_index=by_index), each.given_key("a/b", by_index=by_index))
    ]
    assert keys.count("") == 1 and bare.shared_key(by_index=True) == ""  # nobody says what the whole must be
    assert len(set(keys)) == len(keys)
    assert all(key.startswith(found.plain_key) for key in keys if key)
