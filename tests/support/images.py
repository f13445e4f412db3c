"""Manifests and indexes of images, and the way into a registry: dockerregistry.py's or fakeregistry.py's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.support.fakeregistry import FakeRegistry

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
EROFS = "application/vnd.erofs"
TAR = "application/vnd.oci.image.layer.v1.tar"


class Images(NamedTuple):
    """Files with the tree's EROFS image, plain and compressed, and with one of another tree."""

    plain: Path
    lz4: Path
    other: Path


class Published(NamedTuple):
    """References of images in the registry (host/repository:tag), and what is in them.

    plain, lz4: one layer each. of_platforms: an index; linux/amd64 is the plain image, linux/arm64 the other,
    windows/amd64 the lz4 one.
    two: layer 0 other, layer 1 plain. tar: no EROFS layer. liar: a layer that only says it is EROFS. cut: the image's
    first half. short: a manifest that says more bytes than there are.
    """

    plain: str
    lz4: str
    of_platforms: str
    two: str
    tar: str
    liar: str
    cut: str
    short: str


class Layer:
    """A layer to be pushed. `size`: what the manifest says of it, where that is not the truth."""

    def __init__(
        self,
        data: bytes | Path,
        media_type: str = EROFS,
        size: int | None = None,
        annotations: Mapping[str, str] | None = None,
    ):
        self.data = data if isinstance(data, bytes) else data.read_bytes()
        self.digest = digest_of(self.data)
        self.descriptor: dict[str, object] = {
            "mediaType": media_type,
            "digest": self.digest,
            "size": len(self.data) if size is None else size,
        }
        self.annotations = dict(annotations or {})  # may be changed until the layer is pushed
        if annotations:
            self.descriptor["annotations"] = self.annotations


class Registry(Protocol):
    """Where images go. `host` is host:port."""

    @property
    def host(self) -> str: ...

    def put_blob(self, repository: str, data: bytes) -> str: ...

    def put_manifest(self, repository: str, reference: str | None, body: bytes, media_type: str) -> str: ...


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def push_image(
    registry: Registry,
    repository: str,
    tag: str | None,
    layers: Sequence[Layer],
    *,
    platform: str = "linux/amd64",
    os_features: Sequence[str] = (),
) -> dict[str, object]:
    """Pushes the layers, a config and the manifest, under the tag or without one; its descriptor, for an index."""
    system, architecture, *variant = platform.split("/")
    where: dict[str, object] = {"os": system, "architecture": architecture}
    if variant:
        where["variant"] = variant[0]
    if os_features:
        where["os.features"] = list(os_features)
    config = json.dumps(
        {**where, "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]}}
    ).encode()
    for data in (config, *(layer.data for layer in layers)):
        registry.put_blob(repository, data)
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [layer.descriptor for layer in layers],
        }
    ).encode()
    registry.put_manifest(repository, tag, body, OCI_MANIFEST)
    return {"mediaType": OCI_MANIFEST, "digest": digest_of(body), "size": len(body), "platform": where}


def push_index(registry: Registry, repository: str, tag: str, manifests: Sequence[Mapping[str, object]]) -> str:
    """Pushes an index of manifests that have been pushed; its digest."""
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()
    return registry.put_manifest(repository, tag, body, OCI_INDEX)


class FakePusher:
    """Puts images into a FakeRegistry, which knows no repositories: a tag is a tag in all of them."""

    def __init__(self, fake: FakeRegistry):
        self.fake = fake
        self.host = fake.host

    def put_blob(self, repository: str, data: bytes) -> str:
        return self.fake.add_blob(data)

    def put_manifest(self, repository: str, reference: str | None, body: bytes, media_type: str) -> str:
        for name in (reference, digest_of(body)):
            if name:
                self.fake.add_manifest(name, body, media_type)
        return digest_of(body)
