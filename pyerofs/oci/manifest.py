"""Manifests and indexes: OCI image spec 1.1, "Image Manifest" and "Image Index"; Docker's schema 2 and manifest list.

Everything here comes from a stranger, so whatever its shape is, the only exception is ImageError.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ImageError
from .platforms import Platform, rank
from .reference import is_digest

if TYPE_CHECKING:
    from collections.abc import Sequence


INDEX_DEPTH = 4  # an index may name indexes; there is no good reason to nest them deeper

OCI_INDEX = "application/vnd.oci.image.index.v1+json"

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

MEDIA_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)  # for the Accept header

MAX_SIZE = 4 << 20  # bytes of a manifest: the most that the distribution spec asks registries to take

SOCI = "application/vnd.amazon.soci."

# Annotations of an index's entry: of SOCI's index of an image, nydus's and overlaybd's images.
_LAZY = ("com.amazon.soci.image-manifest-digest", "containerd.io/snapshot/nydus-", "containerd.io/snapshot/overlaybd/")

_INDEXES = (OCI_INDEX, DOCKER_INDEX)

_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+"

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]{0,126}/[A-Za-z0-9][\w!#$&^.+-]{0,126}", re.ASCII)

_MAX_BLOB = 2**63 - 1  # bytes, the largest file offset

_JSON_NAMES: dict[type, str] = {str: "a string", int: "an integer", list: "a list", dict: "an object"}

_MAX_LISTED = 16  # entries of a list in a message

# What registries and older tools give an image's config instead of its own type: the config itself decides then.
_GENERAL = re.compile(r"(?:|application/(?:octet-stream|json)|text/(?:html|plain))(?: *;[ -~]*)?")

CONFIG = "application/vnd.oci.image.config.v1+json"

CONFIGS = (CONFIG, "application/vnd.docker.container.image.v1+json")

T = TypeVar("T", str, int, list[Any], dict[str, Any])


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor (OCI image spec, "Content Descriptors").

    `size` in bytes; `platform` only in an index, and `artifact_type` of what is no image there.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image; `layers` base first."""

    media_type: str
    layers: tuple[Descriptor, ...]
    config: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """Images of several platforms; an entry may be an index again."""

    media_type: str
    manifests: tuple[Descriptor, ...]


def parse(body: bytes, media_type: str | None = None) -> Manifest | Index:
    """Parse the manifest or index in `body`; `media_type` is the answer's Content-Type, if any. Raises ImageError."""
    document = _load(body, media_type)
    declared = _declared(document, media_type)
    if any(kind.startswith(_SCHEMA1) for kind in declared) or "fsLayers" in document:
        raise ImageError("the image has a Docker schema 1 manifest, which is obsolete: push it again with a newer tool")
    version = _get(document, "schemaVersion", int)
    if version not in (None, 2):
        raise ImageError(f"the image's manifest has the unknown schemaVersion {_show(version)}")
    manifests = _get(document, "manifests", list)
    layers = _get(document, "layers", list)
    if manifests is not None and (layers is not None or document.get("config") is not None):
        # Two readers could see two images in it (CVE-2021-41190).
        raise ImageError("the manifest is ambiguous: it has 'manifests' and also 'layers' or 'config'")
    if manifests is None and layers is None:
        raise ImageError("this is not an image manifest: it has neither 'layers' nor 'manifests'")
    if any((kind in _INDEXES) != (manifests is not None) for kind in declared):
        raise ImageError(f"the manifest is ambiguous: its type is {declared[0]}, its content that of another type")
    if manifests is not None:
        entries = tuple(_descriptor(entry, f"manifests[{i}]") for i, entry in enumerate(manifests))
        return Index(declared[0] if declared else OCI_INDEX, entries)
    config = document.get("config")
    return Manifest(
        media_type=declared[0] if declared else OCI_MANIFEST,
        layers=tuple(_descriptor(entry, f"layers[{i}]", smallest=1) for i, entry in enumerate(layers or ())),
        config=None if config is None else _descriptor(config, "config", typed=False),
        annotations=_annotations(document, ""),
        artifact_type=_get(document, "artifactType", str) or "",
    )


def verify_digest(body: bytes, digest: str) -> None:
    """Raise ImageError, naming both, where `body` has another digest than `digest`."""
    if not is_digest(digest):
        raise ImageError(f"{_show(digest)} is not a digest that can be verified")
    algorithm = digest.partition(":")[0]
    actual = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
    if actual != digest:
        raise ImageError(f"the registry sent different content than was asked for: {actual} instead of {digest}")


def digest_as(what: str, body: bytes) -> str:
    """Return the digest of a document that was asked for by `what`: a tag, or a digest that has been verified."""
    return what if is_digest(what) else f"sha256:{hashlib.sha256(body).hexdigest()}"


def select(index: Index, platform: Platform) -> Descriptor:
    """Return the entry that fits `platform` best, an EROFS one before its equals.

    Raises ImageError listing what there is.
    """
    candidates = [entry for entry in index.manifests if not is_attestation(entry)]
    if len(candidates) == 1 and candidates[0].platform is None:
        return candidates[0]
    ranked = [
        (distance, _format_preference(entry, entry.platform), position)
        for position, entry in enumerate(candidates)
        if entry.platform and (distance := rank(platform, entry.platform)) is not None
    ]
    if ranked:
        return candidates[min(ranked)[2]]
    names = dict.fromkeys(_plain(str(entry.platform)) if entry.platform else "one unnamed" for entry in candidates)
    there_is = f"it has {listed(list(names))} (choose with -o oci.platform=)" if names else nothing_in(index)
    raise ImageError(f"the image has nothing for the platform {platform}; {there_is}")


def nothing_in(index: Index) -> str:
    """Say why an index has no image at all."""
    if index.manifests:
        return "its index holds nothing but attestations about an image"
    return "its index is empty"


def is_image_config(descriptor: Descriptor) -> bool:
    """Tell whether a config may be that of a container's image, as far as its media type says."""
    return descriptor.media_type in CONFIGS or _GENERAL.fullmatch(descriptor.media_type) is not None


def is_attestation(entry: Descriptor) -> bool:
    """BuildKit stores provenance as an entry for a platform that no machine has."""
    return entry.platform is not None and "unknown" in (entry.platform.os, entry.platform.architecture)


def _format_preference(entry: Descriptor, platform: Platform) -> int:
    """Smaller is better; a feature that is not ours marks another lazy format, as do some artifacts beside an image."""
    if entry.artifact_type.startswith(SOCI) or any(key.startswith(_LAZY) for key in entry.annotations):
        return 3
    return 0 if "erofs" in platform.os_features else 2 if platform.os_features else 1


def _load(body: bytes, content_type: str | None) -> dict[str, Any]:
    if len(body) > MAX_SIZE:
        raise ImageError(f"the manifest has {len(body)} bytes; at most {MAX_SIZE} are read")
    try:
        document = json.loads(body.decode())
    except RecursionError:
        raise ImageError("the manifest is nested too deeply") from None
    except ValueError:
        kind = _plain((content_type or "").partition(";")[0].strip())
        if kind and kind not in MEDIA_TYPES:
            raise ImageError(f"the answer is not a manifest but of the type {kind}: is this a registry?") from None
        raise ImageError("the manifest is not JSON") from None
    if type(document) is not dict:
        raise ImageError("the manifest is not a JSON object")
    return document


def _declared(document: dict[str, Any], content_type: str | None) -> list[str]:
    """Return the types that the body and the answer's header state, the body's first.

    A general header counts for nothing.
    """
    declared = []
    own = _get(document, "mediaType", str)
    if own:
        if own not in MEDIA_TYPES and not own.startswith(_SCHEMA1):
            raise ImageError(f"the manifest is of the type {_show(own)}, not of an image")
        declared.append(own)
    header = (content_type or "").partition(";")[0].strip().lower()
    if header in MEDIA_TYPES or header.startswith(_SCHEMA1):
        declared.append(header)
    return declared


def _get(document: dict[str, Any], key: str, kind: type[T], where: str = "") -> T | None:
    """Return the value of `key`, None where it is absent or null.

    The type is compared exactly, since True is an int as well.
    """
    value: T | None = document.get(key)
    if value is not None and type(value) is not kind:
        raise ImageError(f"the manifest is malformed: {where}{_plain(key)} is not {_JSON_NAMES[kind]}")
    return value


def _descriptor(value: object, where: str, smallest: int = 0, *, typed: bool = True) -> Descriptor:
    if type(value) is not dict:
        raise ImageError(f"the manifest is malformed: {where} is not an object")
    where += "."
    media_type = _get(value, "mediaType", str, where) or ""
    if not _MEDIA_TYPE.fullmatch(media_type) and (typed or not _GENERAL.fullmatch(media_type)):
        raise ImageError(f"the manifest is malformed: {where}mediaType is {_show(media_type)}")
    digest = _get(value, "digest", str, where) or ""
    if not is_digest(digest):
        raise ImageError(f"the manifest is malformed: {where}digest is {_show(digest)}, not a sha256 or sha512 digest")
    size = _get(value, "size", int, where)
    if size is None or not smallest <= size <= _MAX_BLOB:
        raise ImageError(f"the manifest is malformed: {where}size is {_show(size)}")
    return Descriptor(
        media_type=media_type,
        digest=digest,
        size=size,
        annotations=_annotations(value, where),
        platform=_platform(value, where),
        urls=_strings(value, "urls", where),
        artifact_type=_get(value, "artifactType", str, where) or "",
    )


def _annotations(document: dict[str, Any], where: str) -> dict[str, str]:
    annotations = _get(document, "annotations", dict, where) or {}
    for key in annotations:
        _get(annotations, key, str, f"{where}annotations.")
    return {key: value for key, value in annotations.items() if value is not None}


def _strings(document: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = _get(document, key, list, where) or ()
    if not all(type(value) is str for value in values):
        raise ImageError(f"the manifest is malformed: {where}{key} is not a list of strings")
    return tuple(values)


def _platform(document: dict[str, Any], where: str) -> Platform | None:
    value = _get(document, "platform", dict, where) or {}
    where += "platform."
    system, architecture, variant = (_get(value, key, str, where) or "" for key in ("os", "architecture", "variant"))
    features = _strings(value, "os.features", where)
    return Platform(system, architecture, variant, features) if system or architecture else None


def _plain(text: str, limit: int = 80) -> str:
    """Text from outside, made fit for one line of a message."""
    escaped = ascii(text)[1:-1]
    return escaped if len(escaped) <= limit else f"{escaped[:limit]}..."


def _show(value: str | int | None) -> str:
    if isinstance(value, str):
        return f"'{_plain(value)}'"
    return "absent" if value is None else _plain(str(value))


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """Join what a message lists; of many the first, and how many more there are."""
    more = len(items) - _MAX_LISTED
    return separator.join([*items[:_MAX_LISTED], *([f"and {more} more"] if more > 0 else [])])
