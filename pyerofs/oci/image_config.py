"""The config and the manifest of an image with EROFS layers, out of those of the image that it is made of.

OCI image spec, "Image Configuration"; docs/image-format.md, "Writing". Everything read here comes from a stranger, so
whatever its shape is, the only exception is ImageError. Pure functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ImageError
from .manifest import CONFIG, MAX_SIZE, OCI_INDEX, OCI_MANIFEST, Descriptor
from .platforms import Platform
from .raw_manifest import RawManifest, descriptor, digest_of, dump, platform
from .reference import is_digest

FEATURE = "erofs"
_FEATURES = "os.features"


def read_config(body: bytes, layers: int) -> tuple[dict[str, Any], list[str]]:
    """Return the config of an image with so many layers, and their diff IDs. Raises ImageError."""
    try:
        config = json.loads(body.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ImageError("the image's config is not JSON") from None
    if not isinstance(config, dict):
        raise ImageError("the image's config is not a JSON object")
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(isinstance(entry, str) and is_digest(entry) for entry in diff_ids):
        raise ImageError("the image's config has no diff_ids: is it the image of a container?")
    if len(diff_ids) != layers:
        raise ImageError(f"the image's config has {len(diff_ids)} diff_ids for {layers} layers")
    return config, diff_ids


def _no_number(name: str) -> None:
    raise ValueError(name)  # NaN, which Python would read


def make_config(config: Mapping[str, Any], digests: Sequence[str]) -> bytes:
    """Return the same config for EROFS layers with these digests. Raises ImageError."""
    features = config.get(_FEATURES) or []
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        raise ImageError(f"the image's config has {_FEATURES} that are no list of strings")
    rootfs = {"type": "layers", "diff_ids": list(digests)}
    made = {**config, _FEATURES: [*(f for f in features if f != FEATURE), FEATURE], "rootfs": rootfs}
    try:
        body = dump(made)
    except (ValueError, RecursionError):
        raise ImageError("the image's config has a number or a depth that JSON cannot have") from None
    if len(body) > MAX_SIZE:
        raise ImageError(f"the image's config has {len(body)} bytes; at most {MAX_SIZE} are written")
    return body


def make_manifest(config: bytes, layers: Sequence[Mapping[str, Any]], annotations: Mapping[str, str]) -> RawManifest:
    found: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, digest_of(config), len(config)),
        "layers": list(layers),
    }
    if annotations:
        found["annotations"] = dict(annotations)
    return RawManifest.of(found, OCI_MANIFEST)


def make_index(entries: Sequence[Mapping[str, Any]], annotations: Mapping[str, str]) -> RawManifest:
    found: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    if annotations:
        found["annotations"] = dict(annotations)
    return RawManifest.of(found, OCI_INDEX)


def make_entry(document: RawManifest, entry: Descriptor) -> dict[str, Any]:
    """Return the descriptor of a converted manifest, for an index in which `entry` named the original."""
    found = document.describe()
    if entry.annotations:
        found["annotations"] = dict(entry.annotations)
    if entry.platform:
        features = tuple(feature for feature in entry.platform.os_features if feature != FEATURE)
        where = entry.platform
        found["platform"] = platform(Platform(where.os, where.architecture, where.variant, (*features, FEATURE)))
    return found


def annotations_of(document: RawManifest) -> dict[str, str]:
    """Those of the whole, which has been parsed."""
    found = json.loads(document.body).get("annotations") or {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def describe_entry(entry: Descriptor) -> dict[str, Any]:
    """Return the descriptor of a manifest for an index, as it is: with its platform, if that is known."""
    found = descriptor(entry.media_type, entry.digest, entry.size, entry.annotations)
    return {**found, "platform": platform(entry.platform)} if entry.platform else found


def entries_of(index: RawManifest) -> list[dict[str, Any]]:
    """Return the entries of an index, which has been parsed, with all that they say."""
    found: list[dict[str, Any]] = json.loads(index.body)["manifests"]
    return found


def platform_of(config: bytes) -> Platform | None:
    """Return the platform of an image by its config, which has been read; None where it does not say."""
    found = json.loads(config)
    system, architecture, variant = (found.get(key) or "" for key in ("os", "architecture", "variant"))
    if not (isinstance(system, str) and isinstance(architecture, str) and isinstance(variant, str)):
        return None
    return Platform(system, architecture, variant) if system and architecture else None


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return the ChainID (OCI image spec, "Layer ChainID") of each layer: of it and of all below it."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(digest_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains


def with_one_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with a history that has one layer, the last one's: some tools count them."""
    history = config.get("history")
    if not isinstance(history, list) or not all(isinstance(step, dict) for step in history):
        return dict(config)
    last = max((number for number, step in enumerate(history) if not step.get("empty_layer")), default=-1)
    return {
        **config,
        "history": [step if number == last else {**step, "empty_layer": True} for number, step in enumerate(history)],
    }


def new_config(where: Platform, digests: Sequence[str], names: Sequence[str]) -> bytes:
    """Of an image that is made of nothing but these layers. No times: the same layers give the same image."""
    history = [{"created_by": f"pyerofs build {name}"} for name in names]
    return make_config({**platform(where), "config": {}, "rootfs": {}, "history": history}, digests)
