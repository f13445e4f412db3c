"""Images without EROFS layers are called by their names, and what is no tar archive is not taken for one."""

from __future__ import annotations

import pytest

from pyerofs.erofs.foreign import NotErofsError, obstacle, summary
from pyerofs.oci.manifest import Descriptor, Manifest

OCI = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
NYDUS = "application/vnd.oci.image.layer.nydus.blob.v1"
SNAPSHOT = "containerd.io/snapshot"
STARGZ = f"{SNAPSHOT}/stargz/toc.digest"
SOCI = "application/vnd.amazon.soci.index.v1+json"


def image(*layers: tuple[str, str], config: str = "application/vnd.oci.image.config.v1+json") -> Manifest:
    """Of layers with this media type and this annotation."""
    descriptors = [
        Descriptor(kind, f"sha256:{number:064x}", 1 << 20, {key: "x"} if key else {})
        for number, (kind, key) in enumerate(layers)
    ]
    return Manifest("", tuple(descriptors), Descriptor(config, f"sha256:{99:064x}", 10))


@pytest.mark.parametrize(("layers", "text"), [
    ([(OCI, "")], "1 layer of tar, 1.0 MiB"),
    ([(f"{OCI}+gzip", ""), (DOCKER, ""), (f"{OCI}+zstd", "")], "2 layers of tar+gzip, 1 layer of tar+zstd, 3.0 MiB"),
    ([(f"{OCI}+gzip", STARGZ)] * 2, "2 eStargz layers of tar+gzip, 2.0 MiB"),
    ([(f"{OCI}+zstd", STARGZ), (OCI, STARGZ)], "1 zstd:chunked layer of tar+zstd, 1 layer of tar, 2.0 MiB"),
])  # fmt: skip
def test_what_can_be_converted(layers: list[tuple[str, str]], text: str) -> None:
    assert obstacle(image(*layers)) == ""
    assert summary(image(*layers)) == text
    assert "oci.convert=auto lets mount convert it" in str(NotErofsError("app:1", "", image(*layers)))


@pytest.mark.parametrize(("layers", "text"), [
    ([(NYDUS, ""), (f"{OCI}+gzip", f"{SNAPSHOT}/nydus-bootstrap")], "a nydus image, which cannot be converted: name"),
    ([(OCI, f"{SNAPSHOT}/nydus-blob")], "a nydus image"),
    ([(OCI, f"{SNAPSHOT}/overlaybd/blob-digest")], "an overlaybd image, which cannot be converted: name the ordinary"),
    ([("application/vnd.amazon.soci.layer", "")], "a SOCI index, not an image: name the image that it is for"),
    ([("application/x", ""), (OCI, "")], "it cannot be converted: a layer is of the unknown type application/x"),
    ([("application/vnd.erofs.chunk-index.v1", "")], "a layer is an EROFS chunk index"),
    ([], "at least one layer"),
])  # fmt: skip
def test_what_cannot(layers: list[tuple[str, str]], text: str) -> None:
    assert text in obstacle(image(*layers))
    assert text in str(NotErofsError("app:1", "", image(*layers)))
    assert "oci.convert" not in str(NotErofsError("app:1", "", image(*layers)))


def test_a_soci_index_is_told_by_its_config() -> None:
    assert "a SOCI index" in obstacle(image(("application/octet-stream", ""), config=SOCI))
