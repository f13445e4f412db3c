"""Native layers among an image's layers: by media type, by number, by digest; and what the others are."""

from __future__ import annotations

import re

from ..errors import ImageError
from ..oci.manifest import SOCI, Descriptor, Manifest, listed
from ..tar.toc.formats import toc_format
from ..tar.toc.model import TocError


def is_native(media_type: str) -> bool:
    """Whether a layer of this type is an EROFS image, raw or `+zstd` (docs/image-format.md, "Media types")."""
    base, plus, suffix = media_type.partition("+")
    if not plus:
        return base.endswith(".erofs") or base.startswith("application/vnd.erofs.layer")
    return suffix == "zstd" and (base == "application/vnd.erofs" or base.startswith("application/vnd.erofs.layer"))


def is_compressed(media_type: str) -> bool:
    return media_type.endswith("+zstd")


def native_layers(manifest: Manifest) -> list[tuple[int, Descriptor]]:
    """Return the EROFS layers, each with its index among all layers."""
    return [(i, layer) for i, layer in enumerate(manifest.layers) if is_native(layer.media_type)]


def foreign_format(descriptor: Descriptor) -> str:
    """Say what a layer that is not EROFS is, with an article; "" for what is not known."""
    kind, keys = descriptor.media_type, descriptor.annotations
    if ".nydus." in kind or any(key.startswith("containerd.io/snapshot/nydus-") for key in keys):
        return "a nydus layer"
    if kind.startswith(SOCI):
        return "a SOCI index"
    if any(key.startswith("containerd.io/snapshot/overlaybd/") for key in keys):
        return "an overlaybd layer"
    try:
        toc = toc_format(kind, keys)
    except TocError:
        toc = ""
    if toc:
        return f"a{'n' * (toc == 'eStargz')} {toc} layer"
    if kind.startswith("application/vnd.erofs.chunk-index."):
        return "an EROFS chunk index"
    if re.search(r"\.tar([.+]|$)", kind):
        return "an ordinary tar layer"
    return ""


def explain_foreign(descriptor: Descriptor) -> str:
    """Say the same for a message, with the media type."""
    name, kind = foreign_format(descriptor), descriptor.media_type
    return f"{name} ({kind})" if name else f"of the unknown type {kind}"


def choose_layer(manifest: Manifest, layer: int | None = None, blob: str | None = None) -> tuple[int, Descriptor]:
    """Return the layer to mount.

    Number `layer` (of all layers, base 0), the one with digest `blob`, or the only EROFS one.

    Raises ImageError that says which layers there are.
    """
    count = len(manifest.layers)
    if layer is not None:
        if not 0 <= layer < count:
            there_are = f"0 to {count - 1}" if count > 1 else "only layer 0" if count else "no layers at all"
            raise ImageError(f"the image has no layer {layer}: it has {there_are}")
        return mountable(manifest, layer)
    if blob is not None:
        for i, descriptor in enumerate(manifest.layers):
            if descriptor.digest == blob:
                return mountable(manifest, i)
        raise ImageError(f"the image has no layer with the digest {blob}; {describe_native(manifest)}")
    native = native_layers(manifest)
    if len(native) > 1:
        raise ImageError(f"choose a layer with -o oci.layer=N: {describe_native(manifest)}")
    if not native:
        foreign = dict.fromkeys(explain_foreign(entry) for entry in manifest.layers)
        raise ImageError(f"the image has no EROFS layer: {listed(list(foreign)) or 'it has no layers at all'}")
    return mountable(manifest, native[0][0])


def mountable(manifest: Manifest, i: int) -> tuple[int, Descriptor]:
    """Layer i, if it is one that can be mounted. Raises ImageError."""
    layer = manifest.layers[i]
    if not is_native(layer.media_type):
        raise ImageError(f"layer {i} is not EROFS but {explain_foreign(layer)}; {describe_native(manifest)}")
    return i, layer


def describe_native(manifest: Manifest) -> str:
    """For the end of a message: which layers are EROFS."""
    native = [
        f"layer {i}: {layer.media_type}, {layer.size} bytes, {layer.digest}" for i, layer in native_layers(manifest)
    ]
    return f"the EROFS layers are {listed(native, '; ')}" if native else "the image has no EROFS layer"
