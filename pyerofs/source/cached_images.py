"""Which entries of the cache belong to an image or a layer, by the manifests that are kept there."""

from __future__ import annotations

from ..cache.manifests import ManifestCache
from ..context import ignore
from ..erofs.layer import describe
from ..erofs.native import native_layers
from ..errors import ImageError, UsageError
from ..oci.manifest import Index, Manifest, digest_as, parse
from ..oci.reference import Reference, is_digest


def native_keys(directory: str, text: str) -> set[str]:
    """Return the digests under which layers of what the user calls so are kept; none for what is not known.

    `text`: an image's name, a manifest's digest, or a layer's. Of an image, without the layers that others have too.
    """
    kept = ManifestCache(directory, ignore).scan()
    documents: dict[str, Manifest | Index] = {}
    for _, _, body in kept:
        try:
            documents[digest_as("", body)] = parse(body)
        except ImageError:
            continue
    chosen = _named(text, kept, documents)
    for digest in list(chosen):
        if isinstance(index := documents[digest], Index):
            chosen |= {entry.digest for entry in index.manifests} & set(documents)
    own: set[str] = set()
    others: set[str] = set()
    for digest, document in documents.items():
        if isinstance(document, Manifest):
            for layer, keys in _layers(document):
                if layer == text:
                    return keys
                (own if digest in chosen else others).update(keys)
    return own - others


def _named(text: str, kept: list[tuple[str, str, bytes]], documents: dict[str, Manifest | Index]) -> set[str]:
    if is_digest(text):
        return {text} & set(documents)
    try:
        reference = Reference.parse(text)
    except UsageError:
        return set()
    repository = f"{reference.registry}/{reference.repository}"
    return {
        digest
        for giver, what, body in kept
        if giver.partition(" ")[0] == repository and what == reference.manifest_reference
        and (digest := digest_as("", body)) in documents
    }  # fmt: skip


def _layers(manifest: Manifest) -> list[tuple[str, set[str]]]:
    """Return the digest of each native layer, and what it may be kept under."""
    found = []
    for number, descriptor in native_layers(manifest):
        try:
            layer = describe(manifest, number)
        except ImageError:
            continue
        keys = {layer.digest, layer.plain_key, *([layer.verified_key] if layer.index else [])}
        found.append((descriptor.digest, keys))
    return found
