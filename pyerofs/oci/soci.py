"""SOCI's documents: an index names the zTOCs of an image's layers, and is bound to the image, or only refers to it.

soci-snapshotter, docs/soci-index-manifest-v2.md, soci/soci_index.go. An index is a manifest. Version 2: the image's own
manifest has its digest in an annotation. Version 1: it has the manifest's digest for its subject, and is found by what
the registry says refers to that; whoever may push there can add one. What is read comes from a stranger: ImageError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import ImageError
from .manifest import CONFIG, OCI_INDEX, OCI_MANIFEST, SOCI, Descriptor, Index, Manifest
from .platforms import Platform
from .raw_manifest import RawManifest, descriptor, digest_of, platform
from .reference import is_digest

BOUND, REFERRER = f"{SOCI}index.v2+json", f"{SOCI}index.v1+json"  # media types of an index's config
PREFETCH = f"{SOCI}prefetch.v1+json"
ZTOC = "application/octet-stream"
PACKED_ZTOC = "application/vnd.pyerofs.ztoc.v1+gzip"  # the same bytes, compressed; SOCI passes over it
INDEX_DIGEST = "com.amazon.soci.index-digest"  # of an image's manifest
EMPTY = b"{}"  # an index's config

_LAYER = "com.amazon.soci.image-layer-digest"
_LAYER_TYPE = "com.amazon.soci.image-layer-mediaType"
_SPACING = "com.amazon.soci.span-size"
_TOOL = "com.amazon.soci.build-tool-identifier"
_MANIFEST = "com.amazon.soci.image-manifest-digest"  # of an index's entry in the image's OCI index


class LayerIndex(NamedTuple):
    """What an index has for a layer: a zTOC, and perhaps what is to be fetched of the layer at once."""

    ztoc: Descriptor
    prefetch: Descriptor | None


def layer_indexes(index: Manifest) -> dict[str, LayerIndex]:
    """Return what the index has, by the digests of layers. Raises ImageError where it is no SOCI index."""
    if index.config is None or index.config.media_type not in (BOUND, REFERRER):
        raise ImageError("it is no SOCI index")
    plain, packed, prefetch = (
        {
            entry.annotations[_LAYER]: entry
            for entry in index.layers
            if entry.media_type == kind and _LAYER in entry.annotations
        }
        for kind in (ZTOC, PACKED_ZTOC, PREFETCH)
    )
    return {layer: LayerIndex(ztoc, prefetch.get(layer)) for layer, ztoc in {**plain, **packed}.items()}


def bound_digest(manifest: Manifest) -> str:
    """Return the digest of the index that an image's manifest names; "" for none. Raises ImageError."""
    digest = manifest.annotations.get(INDEX_DIGEST, "")
    if digest and not is_digest(digest):
        raise ImageError(f"its annotation {INDEX_DIGEST} is no digest")
    return digest


def referring_digests(referrers: Index) -> list[str]:
    """Return the digests of the indexes among what refers to an image."""
    return [entry.digest for entry in referrers.manifests if entry.artifact_type == REFERRER]


def describe_ztoc(media_type: str, digest: str, size: int, layer: Descriptor, spacing: int) -> dict[str, Any]:
    """Return the descriptor of a layer's zTOC."""
    about = {_LAYER: layer.digest, _LAYER_TYPE: layer.media_type, _SPACING: str(spacing)}
    return descriptor(media_type, digest, size, about)


def make_index(ztocs: Sequence[Mapping[str, Any]], subject: Mapping[str, Any] | None) -> RawManifest:
    """Return the index of these zTOCs; `subject`: the descriptor of the manifest that it refers to, None: of none."""
    found: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(REFERRER if subject else BOUND, digest_of(EMPTY), len(EMPTY)),
        "layers": list(ztocs),
    }
    if subject:
        found["subject"] = dict(subject)
    found["annotations"] = {_TOOL: "pyerofs"}
    return RawManifest.of(found, OCI_MANIFEST)


def bind(document: RawManifest, index: RawManifest) -> RawManifest:
    """Return a manifest, which has been parsed, with the index in an annotation: in OCI's form, since it has some."""
    found = json.loads(document.body)
    found["mediaType"] = OCI_MANIFEST
    found["config"] = {**found["config"], "mediaType": CONFIG}
    found["annotations"] = {**(found.get("annotations") or {}), INDEX_DIGEST: index.digest}
    return RawManifest.of(found, OCI_MANIFEST)


def index_entry(index: RawManifest, bound: RawManifest, where: Platform | None) -> dict[str, Any]:
    """Return the entry of an index in the OCI index of its image, so that the two stay together."""
    found = {**index.describe(), "artifactType": BOUND, "annotations": {_MANIFEST: bound.digest}}
    return {**found, "platform": platform(where)} if where else found


def is_index_entry(entry: Descriptor) -> bool:
    """Whether an entry of an OCI index is that of a SOCI index, and no image."""
    return entry.artifact_type.startswith(SOCI) or _MANIFEST in entry.annotations


# Registries without the referrers API, OCI distribution specification, "Referrers Tag Schema".


def referrers_tag(digest: str) -> str:
    """Return the tag under which the list of what refers to a manifest lies."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm[:32]}-{value[:64]}"


def referrers_with(listed: Index | None, body: bytes, index: RawManifest) -> RawManifest | None:
    """Return the list with an index in it; None where it is there. `body`: of `listed`, None where there is none."""
    entry = {**index.describe(), "artifactType": REFERRER, "annotations": {_TOOL: "pyerofs"}}
    if listed is None:
        return RawManifest.of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}, OCI_INDEX)
    if any(known.digest == index.digest for known in listed.manifests):
        return None
    found = json.loads(body)
    return RawManifest.of({**found, "manifests": [*found["manifests"], entry]}, OCI_INDEX)
