"""What an image holds, and what is mounted: for `inspect` and `list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import oci_options
from .manifest import Index, Manifest, native_media_type
from .mountpoint import mountinfo
from .platforms import Platform
from .record import read_all
from .source import connect, resolve
from .view import health, look_at_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def inspect(
    image: str, options: Sequence[str] | str = (), *, trace: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """The platforms of an image and the layers of the one that fits. Raises PyerofsError."""
    oci = oci_options([options] if isinstance(options, str) else list(options), image)
    reference, registry, transport = connect(image, oci, trace=trace)
    try:
        chosen = resolve(registry, reference, oci.platform or Platform.host(), timeout=oci.timeout)
    finally:
        transport.close()
    root = chosen.root
    found: dict[str, Any] = {"reference": str(reference), "digest": chosen.root_digest, "media_type": root.media_type}
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
    found["layers"] = [_layer(i, chosen.manifest) for i in range(len(chosen.manifest.layers))]
    return found


def _layer(index: int, manifest: Manifest) -> dict[str, Any]:
    layer = manifest.layers[index]
    return {
        "index": index,
        "media_type": layer.media_type,
        "size": layer.size,
        "digest": layer.digest,
        "native": native_media_type(layer.media_type),
        "annotations": {k: v for k, v in layer.annotations.items() if k.startswith("org.erofs.")},
    }


def render(found: dict[str, Any]) -> str:
    """For people: what inspect() found."""
    lines = [f"{found['reference']}  {found['digest']}"]
    for entry in found.get("platforms", ()):
        features = f" ({', '.join(entry['os_features'])})" if entry["os_features"] else ""
        mark = "*" if entry["digest"] == found["manifest"]["digest"] else " "
        lines.append(f"{mark} {entry['platform']}{features}  {entry['digest']}")
    for layer in found["layers"]:
        native = "EROFS" if layer["native"] else "-"
        lines.append(
            f"layer {layer['index']}  {native:<5}  {layer['size']:>12}  {layer['media_type']}  {layer['digest']}"
        )
        lines += [f"    {key}: {value}" for key, value in layer["annotations"].items()]
    return "\n".join(lines)


def mounts() -> list[dict[str, Any]]:
    """Every EROFS mount of this mount namespace; those without a daemon of ours have no `pid`, `digest`, `health`. For
    one whose daemon does not answer there is no `present` and no `present_percent`."""
    records = {record.device: record for record in read_all()}
    statuses = {status["device"]: status for status in look_at_all(records.values())}
    found = []
    for mount in mountinfo():
        if mount.fstype == "erofs":
            record = records.get(mount.source)
            status = statuses.get(mount.source, {})
            percent = status.get("cache", {}).get("present_percent")
            found.append(
                {
                    "target": mount.target,
                    "source": record.source if record else mount.source,
                    "device": mount.source,
                    "driver": record.driver if record else "local",
                    "pid": record.pid if record else None,
                    "size": record.size if record else None,
                    "digest": record.digest if record else None,
                    "layer": record.layer if record else None,
                    "present": None if percent is None else f"{percent:.1f}%",
                    "present_percent": percent,
                    "health": health(status) if status else None,
                }
            )
    return found
