"""Which images are lazy: what stands in an index, and what of it is believed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyerofs.erofs import chunk_index, layer
from pyerofs.erofs.layer import CONTENT
from pyerofs.images.layer import SOURCE_CHAIN
from pyerofs.oci.image_config import chain_ids
from pyerofs.oci.manifest import Descriptor, Index, Manifest
from pyerofs.oci.platforms import Platform
from pyerofs.snapshotter.decision import Decisions, Eager, Lazy, find_sibling, native, substitute

OCI = "application/vnd.oci.image.manifest.v1+json"
TAR, EROFS = "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.erofs"
AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
WITH_EROFS = Platform("linux", "amd64", "", ("erofs",))


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def entry(number: int, platform: Platform | None) -> Descriptor:
    return Descriptor(OCI, digest(number), 1, platform=platform)


def tar(*numbers: int) -> Manifest:
    return Manifest(OCI, tuple(Descriptor(TAR, digest(number), 9) for number in numbers))


def erofs(*numbers: int, **annotations: str) -> Manifest:
    return Manifest(OCI, tuple(Descriptor(EROFS, digest(number), 8192, annotations) for number in numbers))


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers have chunk indexes."""

    def describe(manifest: Manifest, number: int) -> object:
        return replace(layer.describe(manifest, number), index=chunk_index.IndexLocation(0, 1, digest(9), False))

    monkeypatch.setattr("pyerofs.snapshotter.decision.describe", describe)


def test_a_sibling_is_found_by_platform_and_feature() -> None:
    arm = Platform("linux", "arm64", "v8", ("erofs",))
    index = Index("", (entry(1, AMD64), entry(2, ARM64), entry(3, WITH_EROFS), entry(4, arm)))
    assert find_sibling(index, digest(1)) == index.manifests[2]
    assert find_sibling(index, digest(2)) == index.manifests[3]


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (Index("", (entry(2, AMD64), entry(3, WITH_EROFS))), "leads to another index"),
        (Index("", (entry(1, None), entry(3, WITH_EROFS))), "does not say for which platform"),
        (Index("", (entry(1, AMD64), entry(3, ARM64))), "no EROFS image for its platform"),
        (Index("", (entry(1, ARM64), entry(3, WITH_EROFS))), "no EROFS image for its platform"),
    ],
)
def test_no_sibling_is_said_with_its_reason(index: Index, why: str) -> None:
    found = find_sibling(index, digest(1))
    assert isinstance(found, str) and why in found


@pytest.mark.usefixtures("verified")
def test_layers_stand_for_one_another_one_by_one() -> None:
    found = substitute("r/x@d", tar(1, 2), erofs(11, 12, **{SOURCE_CHAIN: digest(7)}), digest(5))
    assert isinstance(found, Lazy)
    assert found.layers == ((digest(1), 1), (digest(2), 2))
    assert found.chains == (digest(7), digest(7))
    assert (found.total, found.options) == (2, "oci.verify=require")


@pytest.mark.usefixtures("verified")
def test_a_merged_image_is_not_taken_for_layers() -> None:
    found = substitute("r/x@d", tar(1, 2), erofs(11), digest(5))
    assert isinstance(found, Eager) and "has 1 layers for its 2" in found.why


def test_layers_without_an_index_are_not_taken() -> None:
    found = substitute("r/x@d", tar(1), erofs(11), digest(5))
    assert isinstance(found, Eager) and "no chunk index to verify it by" in found.why


@pytest.mark.usefixtures("verified")
def test_tar_layers_with_a_label_are_not_taken() -> None:
    found = substitute("r/x@d", tar(1), tar(11), digest(5))
    assert isinstance(found, Eager) and "no filesystems" in found.why


def test_native_layers_are_counted_with_their_indexes() -> None:
    index = Descriptor(chunk_index.MEDIA_TYPE, digest(8), 9)
    first, second = erofs(1, 2).layers
    found = native("r/x@d", Manifest(OCI, (first, index, second)))
    assert isinstance(found, Lazy)
    assert (found.layers, found.total) == (((digest(1), 2), (digest(2), 3)), 3)


def test_native_layers_are_those_that_the_config_names() -> None:
    """So that no image is taken for the layers of another one."""
    packed = Descriptor(f"{EROFS}+zstd", digest(3), 9, {CONTENT: digest(30)})
    bare = Descriptor(f"{EROFS}+zstd", digest(4), 9)
    found = native("r/x@d", Manifest(OCI, (*erofs(1).layers, packed, bare, *erofs(5).layers)))
    assert isinstance(found, Lazy)
    assert found.chains == (*chain_ids([digest(1), digest(30)]), "", "")


def test_only_some_images_may_be_lazy() -> None:
    decisions = Decisions([], lambda line: None, ["registry.example/team/", "other.example"])
    for image in ("registry.example/teams/x:1", "registry.example/x", "other.example.org/x", "x"):
        found = decisions.decide(image, digest(1), 60)
        assert found == Eager("it is none of those that may be lazy (--lazy)"), image
