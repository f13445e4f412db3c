"""Images without EROFS layers: what they are, in a word, and whether they can be made native. Pure values."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from ..errors import ImageError
from ..oci.manifest import CONFIGS, SOCI, is_image_config, listed
from ..quantity import show_bytes
from .native import explain_foreign, foreign_format

if TYPE_CHECKING:
    from ..oci.manifest import Descriptor, Manifest

# Whose bytes are not in the layer itself, or not as a tar archive, whatever the layer's media type says.
_FOREIGN = ("containerd.io/snapshot/nydus-", "containerd.io/snapshot/overlaybd/")
_TAR = re.compile(r"\.tar(?:[.+](\w+))?")


class NotErofsError(ImageError):
    """An image without an EROFS layer. `name` of the image for messages, `digest` of its manifest."""

    def __init__(self, name: str, digest: str, manifest: Manifest) -> None:
        found = dict.fromkeys(explain_foreign(layer) for layer in manifest.layers)
        what = listed(list(found)) or "it has no layers at all"
        super().__init__(f"{name}: the image has no EROFS layer: {what}; {way_out(manifest)}")
        self.name = name
        self.digest = digest
        self.manifest = manifest


def is_convertible(layer: Descriptor) -> bool:
    """Whether it is a tar archive, as far as its descriptor tells."""
    return bool(_TAR.search(layer.media_type)) and not any(key.startswith(_FOREIGN) for key in layer.annotations)


def obstacle(manifest: Manifest) -> str:
    """Why the image cannot be converted, and what to do; "" where it can be."""
    config = manifest.config.media_type if manifest.config else ""
    if manifest.artifact_type and config not in CONFIGS:
        return f"this is not a container image but an artifact of the type {manifest.artifact_type}"
    if any(kind.startswith(SOCI) for kind in (config, *(layer.media_type for layer in manifest.layers))):
        return "this is a SOCI index, not an image: name the image that it is for"
    if any(".nydus." in layer.media_type or _has(layer, _FOREIGN[0]) for layer in manifest.layers):
        return "this is a nydus image, which cannot be converted: name the ordinary image that it was made of"
    if any(_has(layer, _FOREIGN[1]) for layer in manifest.layers):
        return "this is an overlaybd image, which cannot be converted: name the ordinary image that it was made of"
    if not manifest.layers:
        return "an image needs at least one layer"
    if manifest.config is None or not is_image_config(manifest.config):
        what = f"a config of the type {config}" if config else "no config"
        return f"this is not a container image: it has {what}"
    foreign = next((layer for layer in manifest.layers if not is_convertible(layer)), None)
    return f"it cannot be converted: a layer is {explain_foreign(foreign)}" if foreign else ""


def way_out(manifest: Manifest) -> str:
    """Say what the user can do to mount the image."""
    return obstacle(manifest) or (
        "oci.convert=auto lets mount convert it, and `pyerofs convert` makes an EROFS image of it"
    )


def summary(manifest: Manifest) -> str:
    """Say what a convertible image is made of: "5 layers of tar+gzip, 120.0 MiB"."""
    kinds = Counter(_kind(layer) for layer in manifest.layers)
    names = [f"{count} {what}{'' if count == 1 else 's'} of {packed}" for (what, packed), count in kinds.items()]
    return f"{', '.join(names)}, {show_bytes(sum(layer.size for layer in manifest.layers))}"


def _kind(layer: Descriptor) -> tuple[str, str]:
    found = _TAR.search(layer.media_type)
    suffix = (found and found[1]) or ""
    packed = {"gz": "gzip", "zst": "zstd"}.get(suffix, suffix)
    name = foreign_format(layer).partition(" ")[2]
    return name if name.startswith(("eStargz", "zstd:chunked")) else "layer", f"tar+{packed}" if packed else "tar"


def _has(layer: Descriptor, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in layer.annotations)
