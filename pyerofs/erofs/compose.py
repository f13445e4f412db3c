"""Composition: which layers of an image are mounted, as what, and in which order (EROFS Image Layer Format).

Layers come base first. Those with the role "device" belong to the next layer that has another role, those with the role
"overlay-data" to the next one that has names. The last one must have names. Pure values; whatever a manifest gets wrong
is an ImageError of one line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ImageError
from ..oci.manifest import Descriptor, Manifest
from .chunk_index import MEDIA_TYPE
from .layer import TARGET
from .native import choose_layer, describe_native, explain_foreign, is_compressed, is_native, mountable

Role = Literal["lower", "data", "device"]

ROLE = "org.erofs.role"
LOWERS_MAX = 500  # the kernel's fs/overlayfs, OVL_MAX_STACK
_INDEX_TYPE = "application/vnd.erofs.chunk-index."
# What a layer takes of those before it; one that has names takes both, or its files would hold nothing but zeros.
_NEEDS: dict[str, tuple[str, ...]] = {"overlay-data": ("device",), "device": ()}
_ROLES: dict[str, Role] = {"overlay-lower": "lower", "overlay-data": "data", "device": "device"}


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One blob of what is mounted.

    `layer`: its number among all layers, base 0. `role`: a filesystem with names ("lower"), one that only lends its
    files to those above it ("data"), or a blob that another one's mount needs ("device"). `devices`: the layers that
    its own mount needs, in the order of the device= options.
    """

    layer: int
    descriptor: Descriptor
    role: Role = "lower"
    devices: tuple[int, ...] = ()


def is_index(descriptor: Descriptor) -> bool:
    """Whether a layer is a stand-alone chunk index: it is for the layer before it, and never mounted."""
    return descriptor.media_type.startswith(_INDEX_TYPE)


def role_of(descriptor: Descriptor) -> Role | None:
    """None for a layer that has no place in a mount: an ordinary one, or a chunk index. Raises ImageError."""
    if is_index(descriptor):
        return None
    text = descriptor.annotations.get(ROLE)
    if text is None:
        return "lower" if is_native(descriptor.media_type) else None
    if text not in _ROLES:
        raise ImageError(f"{ROLE} is {ascii(text)[:80]}, which is none of {', '.join(_ROLES)}")
    return _ROLES[text]


def compose(manifest: Manifest, layer: int | None = None, blob: str | None = None) -> tuple[PlannedLayer, ...]:
    """Return the parts of a mount in the order of their layers.

    These are the layer with this number or digest, with the devices and the data that it needs, or else the whole
    image. Of an image with a single EROFS layer beside ordinary ones (a copy of them in another format, say) it is that
    layer. Raises ImageError.
    """
    if layer is None and blob is None and _needs_composition(manifest):
        return _whole(manifest)
    number, descriptor = choose_layer(manifest, layer, blob)
    needs = _NEEDS.get(descriptor.annotations.get(ROLE, ""), ("device", "overlay-data"))
    first = number
    while first and (is_index(manifest.layers[first - 1]) or manifest.layers[first - 1].annotations.get(ROLE) in needs):
        first -= 1
    parts, devices = _parts(manifest, range(first, number))
    return (*parts, PlannedLayer(number, descriptor, "lower", devices))


def first_layers(manifest: Manifest, count: int) -> Manifest:
    """Return the image without what lies above its first `count` layers. Raises ImageError where there are fewer."""
    if count > len(manifest.layers):
        raise ImageError(f"the image has {len(manifest.layers)} layers, not {count}")
    return replace(manifest, layers=manifest.layers[:count])


def _needs_composition(manifest: Manifest) -> bool:
    """Whether more takes part than one EROFS layer. An ordinary layer does if it has a role, whichever."""
    layers = [layer for layer in manifest.layers if not is_index(layer)]
    native = [layer for layer in layers if is_native(layer.media_type)]
    taking_part = [layer for layer in layers if layer in native or ROLE in layer.annotations]
    return bool(native) and (len(taking_part) > 1 or native[0].annotations.get(ROLE) not in (None, "overlay-lower"))


def _parts(manifest: Manifest, numbers: range) -> tuple[list[PlannedLayer], tuple[int, ...]]:
    """Of these layers; and the devices for the next one."""
    parts: list[PlannedLayer] = []
    devices: list[int] = []
    for i in numbers:
        layer = manifest.layers[i]
        if is_index(layer):
            _check_target(manifest, i)
            continue
        try:
            role = role_of(layer)
        except ImageError as e:
            raise ImageError(f"layer {i}: {e}") from None
        if role is None:
            raise ImageError(
                f"the image cannot be mounted whole: layer {i} is not EROFS but {explain_foreign(layer)}; "
                f"choose a layer with -o oci.layer=N: {describe_native(manifest)}"
            )
        if role == "device":
            parts.append(_device(manifest, i))
            devices.append(i)
        else:
            mountable(manifest, i)
            parts.append(PlannedLayer(i, layer, role, tuple(devices)))
            devices.clear()
    return parts, tuple(devices)


def _whole(manifest: Manifest) -> tuple[PlannedLayer, ...]:
    parts, _ = _parts(manifest, range(len(manifest.layers)))
    if parts[-1].role != "lower":
        role_text = manifest.layers[parts[-1].layer].annotations[ROLE]
        raise ImageError(f"layer {parts[-1].layer} has the role {role_text}, but no layer follows that could use it")
    if len([part for part in parts if part.role != "device"]) > LOWERS_MAX:
        raise ImageError(f"the image has more than {LOWERS_MAX} EROFS layers, which is what overlayfs can stack")
    return tuple(parts)


def _device(manifest: Manifest, i: int) -> PlannedLayer:
    """Of any type, as long as we can read it."""
    kind = manifest.layers[i].media_type
    if not is_compressed(kind) and ("+" in kind or kind.endswith(".gzip")):
        raise ImageError(f"layer {i} is a device, and compressed in a way that cannot be read lazily ({kind})")
    return PlannedLayer(i, manifest.layers[i], "device")


def _check_target(manifest: Manifest, i: int) -> None:
    """Of what is no index that we know, nothing is asked: it is not used."""
    index = manifest.layers[i]
    target = index.annotations.get(TARGET)
    if index.media_type == MEDIA_TYPE and (i == 0 or target != manifest.layers[i - 1].digest):
        raise ImageError(
            f"layer {i} is a chunk index, but not of the layer just before it: its {TARGET} is {target!a:.80}"
        )
