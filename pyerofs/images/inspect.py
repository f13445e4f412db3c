"""What an image holds, and what is mounted: for `inspect` and `list`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..config.file import oci_options
from ..context import Context, trace_of_caller
from ..erofs.compose import compose, is_index, role_of
from ..erofs.foreign import is_convertible, obstacle, summary, way_out
from ..erofs.layer import describe
from ..erofs.layer_way import judge_layers
from ..erofs.native import foreign_format, is_native, native_layers
from ..errors import ImageError
from ..oci.location import Location
from ..oci.manifest import CONFIGS, Index, Manifest
from ..oci.soci import INDEX_DIGEST
from ..printable import every_text
from ..source.open import resolve_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..cache.directory import Contents
    from ..config.options import ReadOptions
    from ..erofs.layer_way import LayerWay


_CHUNK_INDEX = "org.erofs.chunk-index.range"

_VERITY = "org.erofs.dmverity.root_digest"


def inspect(
    image: str, options: Sequence[str] | str = (), *, trace: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Return the platforms of an image and the layers of the one that fits. Raises PyerofsError."""
    location = Location.parse(image)
    oci = oci_options([options] if isinstance(options, str) else list(options), location)
    chosen, giver = resolve_image(location, oci, Context(trace=trace_of_caller(trace)))
    root = chosen.root
    found: dict[str, Any] = {"reference": chosen.name, "digest": chosen.root_digest, "media_type": root.media_type}
    if isinstance(root, Index):
        found["platforms"] = [
            {
                "platform": str(m.platform or "unknown"),
                "os_features": list(m.platform.os_features) if m.platform else [],
                "digest": m.digest,
            }
            for m in root.manifests
        ]
    found["manifest"] = {"digest": chosen.digest, "media_type": chosen.manifest.media_type}
    from ..cache.paths import chosen_directory  # deferred: mounts() needs nothing of it

    directory = chosen_directory(oci)
    found["notes"] = []
    ways = judge_layers(_with_index(chosen.manifest, chosen.digest, location, oci, found["notes"].append).layers)
    found["layers"] = [_layer(i, chosen.manifest, directory, giver, way) for i, way in enumerate(ways)]
    found["mount"] = _mount(chosen.manifest, oci, found["layers"], lambda: _obstacle(chosen.manifest, location, oci))
    return found


def _with_index(
    manifest: Manifest, digest: str, location: Location, oci: ReadOptions, note: Callable[[str], None]
) -> Manifest:
    """Return the manifest as `mount` judges it: with what a SOCI index says of its layers; `note` gets what is said."""
    if (
        native_layers(manifest)
        or obstacle(manifest)
        or not (INDEX_DIGEST in manifest.annotations or oci.soci != "auto")
    ):
        return manifest
    from ..source.image_reader import open_reader  # deferred: few images need it
    from ..source.soci_index import with_ztocs

    origin = open_reader(location, oci)
    try:
        found = with_ztocs(manifest, digest, origin, oci, note)
    finally:
        origin.close()
    if found.unbound:
        note(f"its SOCI index {found.unbound} is not named by the image: oci.soci={oci.soci} trusts it")
    return found.manifest


def _obstacle(manifest: Manifest, location: Location, oci: ReadOptions) -> str:
    """As obstacle(), also by the config itself where its media type does not tell."""
    problem = obstacle(manifest)
    if problem or manifest.config is None or manifest.config.media_type in CONFIGS:
        return problem
    from ..oci.image_config import read_config
    from ..source.image_reader import open_reader
    from .convert import read_blob  # deferred: few images need it

    origin = open_reader(location, oci)
    try:
        read_config(read_blob(origin, manifest.config), len(manifest.layers))
    except ImageError as error:
        return str(error)
    finally:
        origin.close()
    return ""


def _layer(index: int, manifest: Manifest, directory: str, giver: str, way: LayerWay) -> dict[str, Any]:
    """`present` in bytes, `verified`: both as the cache has it. `role` is None for what has no place in a mount.

    `lazy`: only what is read of it is fetched; else `why` not. `verified_by`: what each byte is compared with before it
    is served; "" where nothing is at hand until all of them are there.
    """
    layer = manifest.layers[index]
    native = is_native(layer.media_type)
    try:
        role = role_of(layer)
    except ImageError:
        role = None
    following = manifest.layers[index + 1 : index + 2]
    held = _held(directory, manifest, index, giver) if native else None
    indexed = _CHUNK_INDEX in layer.annotations or any(is_index(after) for after in following)
    return {
        "index": index,
        "media_type": layer.media_type,
        "size": layer.size,
        "digest": layer.digest,
        "native": native,
        "format": "EROFS" if native else foreign_format(layer),
        "lazy": native or way.lazy,
        "why": "" if native or not is_convertible(layer) else way.why,
        "verified_by": _verified_by(native, indexed, is_convertible(layer), way),
        "annotations": {k: v for k, v in layer.annotations.items() if k.startswith("org.erofs.")},
        "role": role,
        "chunk_index": indexed,
        "verity": _VERITY in layer.annotations,
        "present": held.present if held else 0,
        "verified": held.verified if held else False,
    }


def _verified_by(native: bool, indexed: bool, convertible: bool, way: LayerWay) -> str:
    if native:
        return "chunk index" if indexed else ""
    if not convertible:
        return ""
    return "table of contents" if way.format else "digest and diff ID"


def _held(directory: str, manifest: Manifest, index: int, giver: str) -> Contents | None:
    """Return what the cache has of the layer.

    That is what the index vouches for, or else what its digest does, or else the bytes as they came.
    """
    from ..cache.directory import describe_key

    try:
        layer = describe(manifest, index)
    except ImageError:
        return None
    keys = [layer.verified_key] if layer.index else []
    for by_index in (True, False) if layer.index and layer.compressed else (False,):
        keys += [layer.shared_key(by_index=by_index), layer.given_key(giver, by_index=by_index)]
    return next((found for key in keys if key and (found := describe_key(directory, key)) and not found.broken), None)


def _mount(
    manifest: Manifest, oci: ReadOptions, layers: list[dict[str, Any]], obstacle: Callable[[], str]
) -> dict[str, Any]:
    """Tell what `mount` with these options would mount.

    The numbers of its `layers`, and whether they are `stacked`; or, of an ordinary image, the numbers of those that are
    read by a table of contents (`lazy`), and what would be converted first (`convert`); or the `error`.
    """
    convert = ""
    lazy: list[int] = []
    try:
        parts = compose(manifest, oci.layer, oci.blob)
        error = None
    except ImageError as e:
        parts, error = (), str(e)
        if not native_layers(manifest) and oci.layer is None and oci.blob is None:
            problem = obstacle()
            if oci.convert == "auto" and not problem:
                error = None
                lazy = [layer["index"] for layer in layers if layer["lazy"]]
                rest = tuple(
                    layer
                    for layer, found in zip(manifest.layers, layers, strict=True)
                    if found["verified_by"] != "table of contents"
                )
                convert = summary(replace(manifest, layers=rest)) if rest else ""
            else:
                error = f"{error}; {problem or way_out(manifest)}"
    chosen = [layers[part.layer] for part in parts]
    return {
        "layers": [part.layer for part in parts],
        "stacked": len([part for part in parts if part.role != "device"]) > 1,
        "error": error,
        "convert": convert,
        "lazy": lazy,
        **{key: bool(chosen) and all(layer[key] for layer in chosen) for key in ("chunk_index", "verity", "verified")},
    }


def render(found: dict[str, Any]) -> str:
    """Format what inspect() found as text."""
    found = every_text(found)
    lines = [f"{found['reference']}  {found['digest']}"]
    for entry in found.get("platforms", ()):
        features = f" ({', '.join(entry['os_features'])})" if entry["os_features"] else ""
        mark = "*" if entry["digest"] == found["manifest"]["digest"] else " "
        lines.append(f"{mark} {entry['platform']}{features}  {entry['digest']}")
    for layer in found["layers"]:
        native = "EROFS" if layer["native"] else "-"
        lines.append(
            f"layer {layer['index']}  {native:<5}  {layer['size']:>12}  {layer['media_type']}  {layer['digest']}"
            f"{_marks(layer, layer['role'] or ('' if layer['native'] else layer['format']))}"
        )
        if not layer["native"] and layer["verified_by"]:
            how = "lazily" if layer["lazy"] else f"at once, since {layer['why']}"
            lines.append(f"    read {how}, and verified by its {layer['verified_by']}")
        lines += [f"    {key}: {value}" for key, value in layer["annotations"].items()]
    lines += [f"note: {note}" for note in found["notes"]]
    mount = found["mount"]
    if mount["error"]:
        lines.append(f"mount: no: {mount['error']}")
    elif mount["lazy"] or (not mount["layers"] and not mount["convert"]):
        rest = f", once others have been converted ({mount['convert']})" if mount["convert"] else ""
        lazy = f", {_some(mount['lazy'])} lazily" if mount["lazy"] else ""
        lines.append(f"mount: all layers as one filesystem{lazy}{rest}")
    elif mount["convert"]:
        lines.append(f"mount: all layers as one filesystem, once they have been converted ({mount['convert']})")
    else:
        how = "stacked" if mount["stacked"] else "by itself" if len(mount["layers"]) == 1 else "with its devices"
        lines.append(f"mount: {_some(mount['layers'])}, {how}{_marks(mount)}")
    return "\n".join(lines)


def _some(layers: list[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def _marks(of: dict[str, Any], role: str | None = None) -> str:
    names = {"chunk_index": "index", "verity": "verity", "verified": "verified"}
    marks = [role or "", *(text for key, text in names.items() if of[key])]
    return "".join(f"  {mark}" for mark in marks if mark)
