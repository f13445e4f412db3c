"""skopeo and umoci, which make images and tell what is in one, independently of us."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.needs import need


def copy(source: str, dest: str, *options: str) -> None:
    """`skopeo copy`; registries are on loopback, by plain HTTP. All platforms, unchanged."""
    need("skopeo", "skopeo")
    plain = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", *(options or ("--all", "--preserve-digests")), *plain]
    done = subprocess.run([*command, source, dest], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def umoci(*arguments: str | Path) -> None:
    need("umoci", "umoci")
    done = subprocess.run(["umoci", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def unpacked(image: str, bundle: Path) -> Path:
    """The root of an image of a layout, DIR:NAME, as umoci unpacks it."""
    umoci("unpack", "--image", image, bundle)
    return bundle / "rootfs"


def blobs(layout: Path) -> dict[str, bytes]:
    """The blobs of a layout by their names, each of which is looked at."""
    found = {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == {name: name for name in found}
    return found


def index(layout: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((layout / "index.json").read_bytes())
    return found


def tags(layout: Path) -> dict[str, str]:
    """Digests of the images of a layout by their tags."""
    return {
        entry.get("annotations", {}).get("org.opencontainers.image.ref.name", ""): entry["digest"]
        for entry in index(layout)["manifests"]
    }
