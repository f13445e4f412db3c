"""SOCI's documents: which zTOC a layer has by an index, how an index is bound, and lists of what refers to an image."""

from __future__ import annotations

import json

import pytest

from pyerofs.errors import ImageError
from pyerofs.oci import soci
from pyerofs.oci.manifest import CONFIG, OCI_MANIFEST, Descriptor, Index, Manifest, parse
from pyerofs.oci.raw_manifest import RawManifest, descriptor

LAYER = Descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", "sha256:" + "1" * 64, 99)
OTHER = Descriptor("application/vnd.oci.image.layer.v1.tar", "sha256:" + "2" * 64, 99)
PACKED, PLAIN, OWN = ("sha256:" + digit * 64 for digit in "345")


def made(subject: dict[str, object] | None = None) -> RawManifest:
    return soci.make_index(
        [
            soci.describe_ztoc(soci.PACKED_ZTOC, PACKED, 5, LAYER, 1 << 20),
            soci.describe_ztoc(soci.ZTOC, PLAIN, 9, LAYER, 1 << 20),
            soci.describe_ztoc(soci.ZTOC, OWN, 7, OTHER, 1 << 22),
            {**soci.describe_ztoc(soci.PREFETCH, PLAIN, 3, OTHER, 1), "mediaType": soci.PREFETCH},
        ],
        subject,
    )


def parsed(document: RawManifest) -> Manifest:
    found = parse(document.body, document.media_type)
    assert isinstance(found, Manifest)
    return found


@pytest.mark.parametrize("subject", [None, descriptor(OCI_MANIFEST, OWN, 4)])
def test_index_names_the_ztocs_of_layers(subject: dict[str, object] | None) -> None:
    """The compressed one where there is one."""
    index = parsed(made(subject))
    assert index.config is not None
    assert index.config.media_type == (soci.REFERRER if subject else soci.BOUND)
    assert json.loads(made(subject).body).get("subject") == subject
    found = soci.layer_indexes(index)
    assert (found[LAYER.digest].ztoc.digest, found[LAYER.digest].prefetch) == (PACKED, None)
    assert found[OTHER.digest].ztoc.digest == OWN
    assert (prefetch := found[OTHER.digest].prefetch) is not None and prefetch.digest == PLAIN


def test_manifest_of_anything_else_is_no_index() -> None:
    with pytest.raises(ImageError, match="no SOCI index"):
        soci.layer_indexes(Manifest(OCI_MANIFEST, ()))


def test_manifest_is_bound_in_oci_form_and_else_as_it_was() -> None:
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    config = descriptor("application/vnd.docker.container.image.v1+json", OWN, 4)
    layers = [{**descriptor(LAYER.media_type, LAYER.digest, 99), "urls": ["https://a.example"]}]
    before = {"schemaVersion": 2, "mediaType": docker, "config": config, "layers": layers, "X-own": [1]}
    bound = soci.bind(RawManifest.of(before, docker), made())
    after = json.loads(bound.body)
    assert after.pop("annotations") == {soci.INDEX_DIGEST: made().digest}
    assert (after.pop("mediaType"), after.pop("config")["mediaType"]) == (OCI_MANIFEST, CONFIG)
    assert after == {"schemaVersion": 2, "layers": layers, "X-own": [1]}
    assert soci.bound_digest(parsed(bound)) == made().digest
    assert soci.bind(bound, made()) == bound
    with pytest.raises(ImageError, match="is no digest"):
        soci.bound_digest(Manifest(OCI_MANIFEST, (), annotations={soci.INDEX_DIGEST: "x"}))


def test_list_of_what_refers_to_an_image_is_added_to_once() -> None:
    """All else that it says stays."""
    index = made(descriptor(OCI_MANIFEST, OWN, 4))
    first = soci.referrers_with(None, b"", index)
    assert first is not None
    listed = parse(first.body, first.media_type)
    assert isinstance(listed, Index) and soci.referring_digests(listed) == [index.digest]
    assert soci.referrers_with(listed, first.body, index) is None
    more = json.loads(first.body)
    more["annotations"] = {"a": "b"}
    more["manifests"][0] |= {"digest": OWN, "artifactType": "application/x"}
    body = json.dumps(more).encode()
    known = parse(body)
    assert isinstance(known, Index)
    second = soci.referrers_with(known, body, index)
    assert second is not None
    found = json.loads(second.body)
    assert found["annotations"] == {"a": "b"} and found["manifests"][0] == more["manifests"][0]
    assert len(found["manifests"]) == 2


def test_tag_of_what_refers_to_an_image() -> None:
    assert soci.referrers_tag(OWN) == "sha256-" + "5" * 64
    assert soci.referrers_tag("sha512:" + "a" * 128) == "sha512-" + "a" * 64
