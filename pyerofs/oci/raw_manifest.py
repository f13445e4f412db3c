"""Manifests, indexes and descriptors as they are written: one JSON text for one value, so that digests are stable.

Pure values. oci/manifest.py reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from .platforms import Platform

REF_NAME = "org.opencontainers.image.ref.name"  # of an entry in a layout's index.json: its tag


class RawManifest(NamedTuple):
    """A manifest or an index as it is stored; `digest` is its body's."""

    body: bytes
    media_type: str
    digest: str

    @classmethod
    def of(cls, value: Mapping[str, Any], media_type: str) -> RawManifest:
        body = dump(value)
        return cls(body, media_type, digest_of(body))

    def describe(self) -> dict[str, Any]:
        """Its descriptor."""
        return descriptor(self.media_type, self.digest, len(self.body))


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def dump(value: Mapping[str, Any]) -> bytes:
    """Encode a JSON document; the order of the keys is the caller's.

    ASCII only, since JSON may name characters that UTF-8 cannot have.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def descriptor(media_type: str, digest: str, size: int, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": size}
    if annotations:
        found["annotations"] = dict(annotations)
    return found


def platform(value: Platform) -> dict[str, Any]:
    """OCI image index, "platform". As GOARCH has it: arm64/v8 is written out, for other tools compare the text."""
    found: dict[str, Any] = {"architecture": value.architecture, "os": value.os}
    variant = value.variant or ("v8" if value.architecture == "arm64" else "")
    if variant:
        found["variant"] = variant
    if value.os_features:
        found["os.features"] = list(value.os_features)
    return found
