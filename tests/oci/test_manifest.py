from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.erofs import native as erofs_native
from pyerofs.errors import ImageError
from pyerofs.oci import manifest as m
from pyerofs.oci.manifest import Descriptor, Index, Manifest
from pyerofs.oci.platforms import Platform

quick = settings(deadline=None, derandomize=True, print_blob=True, max_examples=200)

EROFS = "application/vnd.erofs"
TAR = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(n: int = 0) -> str:
    return f"sha256:{n:064x}"


def descriptor(media_type: str = EROFS, n: int = 0, size: Any = 4096, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(n), "size": size, **more}


def image(*layers: Any, **more: Any) -> dict[str, Any]:
    config = descriptor("application/vnd.oci.image.config.v1+json", 99)
    return {"schemaVersion": 2, "mediaType": m.OCI_MANIFEST, "config": config, "layers": list(layers), **more}


def entry(platform: str | None, n: int, *features: str, **more: Any) -> dict[str, Any]:
    if platform is not None:
        os, architecture, *variant = platform.split("/")
        more["platform"] = {"os": os, "architecture": architecture, "os.features": list(features)}
        if variant:
            more["platform"]["variant"] = variant[0]
    return descriptor(m.OCI_MANIFEST, n, **more)


def parse(document: Any, media_type: str | None = None) -> Manifest | Index:
    return m.parse(json.dumps(document).encode(), media_type)


def manifest(*layers: Any) -> Manifest:
    parsed = parse(image(*layers))
    assert isinstance(parsed, Manifest)
    return parsed


def index(*entries: Any) -> Index:
    parsed = parse({"schemaVersion": 2, "manifests": list(entries)})
    assert isinstance(parsed, Index)
    return parsed


def without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


def test_a_manifest() -> None:
    layer = descriptor(TAR, 1, annotations={"a": "b"}, urls=["https://a"])
    parsed = parse(image(layer, descriptor(EROFS, 2), annotations={"c": "d"}))
    assert parsed == Manifest(
        m.OCI_MANIFEST,
        (Descriptor(TAR, digest(1), 4096, {"a": "b"}, None, ("https://a",)), Descriptor(EROFS, digest(2), 4096)),
        Descriptor("application/vnd.oci.image.config.v1+json", digest(99), 4096),
        {"c": "d"},
    )
    assert hash(parsed)


def test_an_index() -> None:
    parsed = index(entry("linux/arm/v7", 1, "erofs"), descriptor(m.OCI_INDEX, 2))
    assert parsed.media_type == m.OCI_INDEX
    assert parsed.manifests[0].platform == Platform("linux", "arm", "v7", ("erofs",))
    assert parsed.manifests[1].platform is None


@pytest.mark.parametrize(
    ("own", "header", "expected"),
    [
        (m.DOCKER_MANIFEST, None, m.DOCKER_MANIFEST),
        (None, m.DOCKER_MANIFEST, m.DOCKER_MANIFEST),
        (None, f"{m.OCI_MANIFEST}; charset=utf-8", m.OCI_MANIFEST),
        (None, "application/json", m.OCI_MANIFEST),
        (None, "", m.OCI_MANIFEST),
        (m.DOCKER_MANIFEST, "text/plain", m.DOCKER_MANIFEST),
        (m.DOCKER_MANIFEST, m.OCI_MANIFEST, m.DOCKER_MANIFEST),
    ],
)
def test_media_type_of_a_manifest(own: str | None, header: str | None, expected: str) -> None:
    assert parse(image(mediaType=own), header).media_type == expected


def test_media_type_of_an_index() -> None:
    assert parse({"schemaVersion": 2, "mediaType": m.DOCKER_INDEX, "manifests": []}).media_type == m.DOCKER_INDEX
    assert parse({"manifests": [], "layers": None}, m.DOCKER_INDEX).media_type == m.DOCKER_INDEX


@pytest.mark.parametrize(
    ("document", "header", "message"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, None, "schema 1"),
        ({}, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        (image(schemaVersion=1), None, "unknown schemaVersion 1"),
        (image(schemaVersion="2"), None, "schemaVersion is not an integer"),
        (image(manifests=[]), None, "ambiguous"),
        ({"manifests": [], "config": {}}, None, "ambiguous"),
        (image(), m.OCI_INDEX, "ambiguous"),
        (image(mediaType=m.OCI_INDEX), None, "ambiguous"),
        ({"mediaType": m.OCI_MANIFEST, "manifests": []}, None, "ambiguous"),
        (image(mediaType="application/x\ny"), None, "not of an image"),
        (image(mediaType=7), None, "mediaType is not a string"),
        ({}, None, "neither 'layers' nor 'manifests'"),
        ([], None, "not a JSON object"),
        (None, None, "not a JSON object"),
        (image(layers={}), None, "layers is not a list"),
        (image("x"), None, "layers[0] is not an object"),
        (image(config=[]), None, "config is not an object"),
        (image(annotations=[]), None, "annotations is not an object"),
        (image(annotations={"a": 1}), None, "annotations.a is not a string"),
        (image(annotations={"a\n\ud800": 1}), None, "annotations.a\\n\\ud800 is not a string"),
        (image(descriptor(size=-1)), None, "layers[0].size is -1"),
        (image(descriptor(size=0)), None, "layers[0].size is 0"),
        (image(descriptor(size=2**63)), None, "layers[0].size is 9223372036854775808"),
        (image(descriptor(size=None)), None, "layers[0].size is absent"),
        (image(descriptor(size=True)), None, "layers[0].size is not an integer"),
        (image(descriptor(size=1.0)), None, "layers[0].size is not an integer"),
        (image(descriptor(size="1")), None, "layers[0].size is not an integer"),
        (image(descriptor(), descriptor(digest=digest().upper())), None, "layers[1].digest"),
        (image(descriptor(digest="0" * 64)), None, "layers[0].digest"),
        (image(without(descriptor(), "digest")), None, "layers[0].digest"),
        (image(without(descriptor(), "mediaType")), None, "layers[0].mediaType"),
        (image(descriptor("a/b\n")), None, "layers[0].mediaType is 'a/b\\n'"),
        (image(descriptor(urls=[1])), None, "layers[0].urls is not a list of strings"),
        (image(descriptor(platform=[])), None, "layers[0].platform is not an object"),
        (image(descriptor(platform={"os": 1})), None, "layers[0].platform.os is not a string"),
        (image(descriptor(platform={"os.features": "erofs"})), None, "platform.os.features is not a list"),
    ],
)
def test_refused(document: Any, header: str | None, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse(document, header)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not JSON"),
        (b'{"layers": [' + b"[" * 200_000, "nested too deeply"),
        (b'{"layers":' + b'{"a":' * 200_000, "nested too deeply"),
        (b'{"layers": ' + b"9" * 5000 + b"}", "not JSON"),
        (b" " * (m.MAX_SIZE + 1), "at most"),
        (b'{"layers": [NaN]}', "layers[0] is not an object"),
    ],
)
def test_bodies_refused(body: bytes, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        m.parse(body)
    assert message in str(caught.value)


def test_duplicate_keys_are_tolerated() -> None:
    parsed = m.parse(b'{"layers": 1, "layers": []}')
    assert isinstance(parsed, Manifest)
    assert parsed.layers == ()


def test_a_surrogate_in_a_string_can_be_printed() -> None:
    with pytest.raises(ImageError) as caught:
        m.parse(b'{"layers": [{"mediaType": "\\ud800"}]}')
    str(caught.value).encode()


KEYS = ["schemaVersion", "mediaType", "layers", "manifests", "config", "digest", "size", "annotations", "platform"]
KEYS += ["os", "architecture", "variant", "os.features", "urls", "fsLayers"]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([EROFS, digest(), 4096]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(max_size=4),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(json_values, st.none() | st.text() | st.sampled_from(m.MEDIA_TYPES))
@quick
def test_any_json_is_a_manifest_or_an_image_error(document: Any, header: str | None) -> None:
    try:
        parse(document, header)
    except ImageError as error:
        assert "\n" not in str(error)


@given(st.sampled_from(["mediaType", "digest", "size", "annotations", "urls", "platform"]), json_values)
@quick
def test_any_json_in_a_descriptor(key: str, value: Any) -> None:
    for document in (image({**descriptor(), key: value}), {"manifests": [{**descriptor(), key: value}]}):
        try:
            parsed = parse(document)
            if isinstance(parsed, Index):
                m.select(parsed, Platform("linux", "amd64"))
            else:
                erofs_native.choose_layer(parsed)
        except ImageError as error:
            assert "\n" not in str(error)


@given(st.binary())
@quick
def test_any_bytes_are_a_manifest_or_an_image_error(body: bytes) -> None:
    with contextlib.suppress(ImageError):
        m.parse(body)


def test_verify_digest() -> None:
    right = "sha256:" + hashlib.sha256(b"body").hexdigest()
    m.verify_digest(b"body", right)
    m.verify_digest(b"body", "sha512:" + hashlib.sha512(b"body").hexdigest())
    with pytest.raises(ImageError) as caught:
        m.verify_digest(b"body", digest())
    assert right in str(caught.value)
    assert digest() in str(caught.value)
    with pytest.raises(ImageError, match="not a digest"):
        m.verify_digest(b"body", "md5:0")


@pytest.mark.parametrize(
    ("entries", "wanted", "chosen"),
    [
        ([entry("linux/arm64", 1), entry("linux/amd64", 2)], "linux/amd64", 2),
        ([entry("linux/amd64", 1), entry("linux/amd64", 2, "erofs")], "linux/amd64", 2),
        ([entry("linux/amd64", 1, "erofs"), entry("linux/amd64", 2, "erofs")], "linux/amd64", 1),
        ([entry("linux/amd64", 1, "nydus.remoteimage.v1"), entry("linux/amd64", 2)], "linux/amd64", 2),
        (
            [{**entry("linux/amd64", 1), "artifactType": f"{m.SOCI}index.v2+json"}, entry("linux/amd64", 2)],
            "linux/amd64",
            2,
        ),
        (
            [
                entry("linux/amd64", 1) | {"annotations": {"containerd.io/snapshot/nydus-bootstrap": "true"}},
                entry("linux/amd64", 2),
            ],
            "linux/amd64",
            2,
        ),
        ([entry("linux/arm/v6", 1), entry("linux/arm/v7", 2), entry("linux/arm/v5", 3)], "linux/arm/v7", 2),
        ([entry("linux/arm/v5", 1), entry("linux/arm/v6", 2)], "linux/arm/v7", 2),
        ([entry("linux/arm/v6", 1, "erofs"), entry("linux/arm/v7", 2)], "linux/arm/v7", 2),
        ([entry("linux/arm64/v8", 1)], "linux/arm64", 1),
        ([entry("linux/amd64/v2", 1), entry("linux/amd64", 2)], "linux/amd64/v3", 1),
        ([entry("unknown/unknown", 1), entry("linux/amd64", 2)], "linux/amd64", 2),
        ([entry(None, 1)], "linux/amd64", 1),
        ([entry(None, 1), entry("unknown/unknown", 2)], "linux/amd64", 1),
        ([entry(None, 1), entry("linux/amd64", 2)], "linux/amd64", 2),
        ([descriptor(m.OCI_INDEX, 1, platform={"os": "", "architecture": ""})], "linux/amd64", 1),
    ],
)
def test_select(entries: list[Any], wanted: str, chosen: int) -> None:
    assert m.select(index(*entries), Platform.parse(wanted)).digest == digest(chosen)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [entry("linux/arm/v7", 1), entry("linux/arm64", 2), entry("linux/arm64", 3)],
            "it has linux/arm/v7, linux/arm64 (",
        ),
        ([entry("linux/arm64", 1), entry("unknown/unknown", 2)], "it has linux/arm64 ("),
        ([entry("linux/386", 1)], "it has linux/386 ("),
        ([entry(None, 1), entry(None, 2)], "it has one unnamed ("),
        ([entry("unknown/unknown", 1)], "its index holds nothing but attestations"),
        ([], "its index is empty"),
        ([entry("\ud800/x\n", 1)], "it has \\ud800/x\\n ("),
        ([entry(f"os{n}/x", n) for n in range(20)], "os15/x, and 4 more ("),
    ],
)
def test_no_such_platform(entries: list[Any], message: str) -> None:
    with pytest.raises(ImageError, match="nothing for the platform linux/amd64") as caught:
        m.select(index(*entries), Platform("linux", "amd64"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("media_type", "native", "compressed"),
    [
        ("application/vnd.erofs", True, False),
        ("application/vnd.erofs+zstd", True, True),
        ("application/vnd.erofs+gzip", False, False),
        ("application/vnd.erofs.chunk-index.v1", False, False),
        ("application/vnd.erofs.chunk-index.v2", False, False),
        ("application/vnd.erofs.layer", True, False),
        ("application/vnd.erofs.layer.v2+zstd", True, True),
        ("application/vnd.erofs.layer.v1", True, False),
        ("application/vnd.erofs.layer.v1+zstd", True, True),
        ("application/vnd.erofs.layer.v1+gzip", False, False),
        ("application/vnd.erofs.layer.v1+zstd+x", False, False),
        ("application/vnd.oci.image.layer.v1.erofs", True, False),
        ("application/vnd.oci.image.layer.v1.erofs+zstd", False, True),
        ("application/vnd.oci.image.layer.erofs", True, False),
        ("application/vnd.example.erofs", True, False),
        ("application/vnd.example.erofs.v1", False, False),
        ("application/x-erofs", False, False),
        ("application/vnd.erofs+zst", False, False),
        ("application/vnd.erofs+zstd+zstd", False, True),
        ("application/vnd.oci.image.layer.v1.tar+zstd", False, True),
        ("application/vnd.oci.image.layer.v1.tar", False, False),
    ],
)
def test_native(media_type: str, native: bool, compressed: bool) -> None:
    assert erofs_native.is_native(media_type) is native
    assert erofs_native.is_compressed(media_type) is compressed


@pytest.mark.parametrize(
    ("media_type", "key", "name"),
    [
        ("application/vnd.oci.image.layer.nydus.blob.v1", "", "a nydus layer"),
        (TAR, "containerd.io/snapshot/nydus-bootstrap", "a nydus layer"),
        ("application/vnd.amazon.soci.index.v1+json", "", "a SOCI index"),
        (
            "application/vnd.oci.image.layer.v1.tar",
            "containerd.io/snapshot/overlaybd/blob-digest",
            "an overlaybd layer",
        ),
        (TAR, "containerd.io/snapshot/stargz/toc.digest", "an eStargz layer"),
        (TAR.replace("gzip", "zstd"), "io.github.containers.zstd-chunked.manifest-checksum", "a zstd:chunked layer"),
        (TAR.replace("gzip", "zstd"), "io.containers.zstd-chunked.manifest-checksum", "a zstd:chunked layer"),
        (TAR, "", "an ordinary tar layer"),
        ("application/vnd.oci.image.layer.v1.tar", "", "an ordinary tar layer"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "", "an ordinary tar layer"),
        ("application/vnd.erofs.chunk-index.v1", "", "an EROFS chunk index"),
        ("application/x-target", "", "of the unknown type application/x-target"),
    ],
)
def test_explain_foreign(media_type: str, key: str, name: str) -> None:
    text = erofs_native.explain_foreign(Descriptor(media_type, digest(), 1, {key: "x"}))
    assert text.startswith(name)
    assert media_type in text


def test_choose_layer() -> None:
    one = manifest(descriptor(TAR, 0), descriptor(EROFS, 1))
    assert erofs_native.native_layers(one) == [(1, one.layers[1])]
    assert erofs_native.choose_layer(one) == (1, one.layers[1])
    assert erofs_native.choose_layer(one, 1, None) == (1, one.layers[1])
    assert erofs_native.choose_layer(one, None, digest(1)) == (1, one.layers[1])
    two = manifest(descriptor(EROFS, 0), descriptor(EROFS, 1))
    assert erofs_native.choose_layer(two, 0)[0] == 0


@pytest.mark.parametrize(
    ("layers", "layer", "blob", "message"),
    [
        ([(EROFS, 0), (TAR, 1)], 2, None, "no layer 2: it has 0 to 1"),
        ([(EROFS, 0)], -1, None, "no layer -1: it has only layer 0"),
        ([], 0, None, "no layer 0: it has no layers at all"),
        ([(EROFS, 0), (TAR, 1)], 1, None, "layer 1 is not EROFS but an ordinary tar layer"),
        ([(EROFS, 0), (TAR, 1)], 1, None, f"the EROFS layers are layer 0: {EROFS}, 4096 bytes, {digest(0)}"),
        ([(TAR, 0)], 0, None, "the image has no EROFS layer"),
        ([(EROFS, 0)], None, digest(7), f"no layer with the digest {digest(7)}; the EROFS layers are layer 0: "),
        ([(TAR, 0)], None, digest(0), "layer 0 is not EROFS"),
        (
            [(EROFS, 0), (TAR, 1), (EROFS, 2)],
            None,
            None,
            f"oci.layer=N: the EROFS layers are layer 0: {EROFS}, 4096 bytes",
        ),
        ([(EROFS, 0), (TAR, 1), (EROFS, 2)], None, None, f"; layer 2: {EROFS}, 4096 bytes, {digest(2)}"),
        ([(TAR, 0), (TAR, 1)], None, None, f"no EROFS layer: an ordinary tar layer ({TAR})"),
        ([], None, None, "no EROFS layer: it has no layers at all"),
        ([(EROFS, n) for n in range(40)], None, None, "; and 24 more"),
    ],
)
def test_layers_refused(layers: list[tuple[str, int]], layer: int | None, blob: str | None, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        erofs_native.choose_layer(manifest(*(descriptor(kind, n) for kind, n in layers)), layer, blob)
    assert message in str(caught.value)
