"""Configs and manifests of converted images: what was there is kept, nothing that is wrong gets in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.errors import ImageError
from pyerofs.oci.image_config import (
    annotations_of,
    make_config,
    make_entry,
    make_index,
    make_manifest,
    new_config,
    read_config,
)
from pyerofs.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Manifest, parse
from pyerofs.oci.platforms import Platform
from pyerofs.oci.raw_manifest import RawManifest, dump
from tests.support.images import digest_of

ONE = digest_of(b"1")


def config(**more: object) -> bytes:
    return json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [ONE]}, **more}).encode()


def test_config() -> None:
    read, diff_ids = read_config(config(**{"os.features": ["a", "erofs"], "x": {"ü": "\ud800"}}), 1)
    assert diff_ids == [ONE]
    made = json.loads(make_config(read, [digest_of(b"2")]))
    assert made == {
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(b"2")]},
        "os.features": ["a", "erofs"],
        "x": {"ü": "\ud800"},
    }


@pytest.mark.parametrize(("body", "error"), [
    (b"", "is not JSON"), (b"\xff", "is not JSON"), (b"[]", "not a JSON object"), (b"{}", "has no diff_ids"),
    (b'{"a":NaN}', "is not JSON"), (b'{"a":-Infinity}', "is not JSON"), (b"[" * 100_000, "is not JSON"),
    (config(rootfs=None), "has no diff_ids"), (config(rootfs={"diff_ids": "x"}), "has no diff_ids"),
    (config(rootfs={"diff_ids": [5]}), "has no diff_ids"), (config(rootfs={"diff_ids": ["x"]}), "has no diff_ids"),
    (config(rootfs={"diff_ids": []}), "0 diff_ids for 1 layers"),
    (config(**{"os.features": "x"}), "no list of strings"), (config(**{"os.features": [1]}), "no list of strings"),
    (config()[:-1] + b',"a":1e999}', "a number or a depth"), (config(a="x" * (4 << 20)), "at most"),
])  # fmt: skip
def test_configs_that_are_refused(body: bytes, error: str) -> None:
    with pytest.raises(ImageError, match=error):
        make_config(read_config(body, 1)[0], [ONE])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner)
       | st.dictionaries(st.sampled_from(["rootfs", "diff_ids", "os.features", "x"]), inner)))  # fmt: skip
def test_nothing_but_image_errors(value: Any) -> None:
    try:
        parsed, _ = read_config(json.dumps(value).encode(), 1)
        make_config(parsed, [ONE])
    except ImageError as error:
        assert "\n" not in str(error)


def test_manifest_and_index_are_read_back() -> None:
    layer = {"mediaType": "application/vnd.erofs", "digest": ONE, "size": 1, "annotations": {"a": "b"}}
    manifest = make_manifest(b"{}", [layer], {"k": "v"})
    found = parse(manifest.body, OCI_MANIFEST)
    assert isinstance(found, Manifest)
    assert (found.annotations, found.layers[0].annotations, found.layers[0].digest) == ({"k": "v"}, {"a": "b"}, ONE)
    old = Descriptor(OCI_MANIFEST, ONE, 1, {"x": "y"}, Platform("linux", "arm64", "v8", ("other", "erofs")))
    index = make_index([make_entry(manifest, old)], {"i": "j"})
    read = parse(index.body, OCI_INDEX)
    assert isinstance(read, Index)
    (entry,) = read.manifests
    assert (entry.digest, entry.size, entry.annotations) == (manifest.digest, len(manifest.body), {"x": "y"})
    assert entry.platform == Platform("linux", "arm64", "v8", ("other", "erofs"))
    assert json.loads(index.body)["manifests"][0]["platform"]["variant"] == "v8"
    assert annotations_of(index) == {"i": "j"}
    assert annotations_of(RawManifest.of({"annotations": {"a": 1, "b": "c"}}, OCI_INDEX)) == {"b": "c"}


def test_new_config_has_no_time() -> None:
    made = json.loads(new_config(Platform("linux", "arm", "v7"), [ONE], ["tree"]))
    assert made == {
        "architecture": "arm", "os": "linux", "variant": "v7", "config": {}, "os.features": ["erofs"],
        "rootfs": {"type": "layers", "diff_ids": [ONE]}, "history": [{"created_by": "pyerofs build tree"}],
    }  # fmt: skip


def test_one_text_for_one_value() -> None:
    assert dump({"b": 1, "a": "ü"}) == b'{"b":1,"a":"\\u00fc"}'
