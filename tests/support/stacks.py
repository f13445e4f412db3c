"""Layers that lie upon one another as overlayfs has them, and what they look like together."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from tests.support.images import EROFS, Layer
from tests.support.trees import Entry, make_image, survey

ROLE = "org.erofs.role"
BLOB = "application/octet-stream"


class Stack(NamedTuple):
    """`layers` base first; `entries`: what their mount shows."""

    layers: list[Layer]
    entries: dict[str, Entry]


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def opaque(path: Path) -> None:
    path.mkdir(parents=True)
    os.setxattr(path, "trusted.overlay.opaque", b"y")


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def merged(layers: list[dict[str, Entry]]) -> dict[str, Entry]:
    """What overlayfs makes of the surveys, by its documentation: the upper wins, directories are merged unless the
    upper one is opaque, a whiteout hides."""
    seen: dict[str, Entry] = {}
    for layer in layers:
        for name, entry in sorted(layer.items()):
            hides = entry.kind != "d" or entry.xattrs.get("trusted.overlay.opaque") == b"y"
            if hides:
                seen = {other: kept for other, kept in seen.items() if not other.startswith(f"{name}/")}
            seen.pop(name, None)
            if (entry.kind, entry.content) != ("c", "0:0"):
                xattrs = {key: value for key, value in entry.xattrs.items() if not key.startswith("trusted.overlay.")}
                seen[name] = entry._replace(xattrs=xattrs)
    return seen


def make_stack(work: Path, base: Path) -> Stack:
    """Three layers: `base`, which is a make_tree(), and two that change it in every way."""
    one, two = work / "one", work / "two"
    whiteout(one / "hello")
    whiteout(one / "many")
    opaque(one / "down")
    write(one / "down" / "new", b"only this")
    write(one / "page" / "was a file", b"now a directory")
    write(one / "empty directory" / "not empty", b"any more")
    whiteout(one / "was never there")
    one.chmod(0o750)
    write(two / "hello", b"hello again\n")
    whiteout(two / "down" / "new")
    write(two / "down" / "newer", b"and this")
    write(two / "sticky", b"was a directory")
    write(two / "sub" / "more", b"beside what was there")
    opaque(two / "empty directory")
    os.setxattr(two / "hello", "user.of", b"two")
    os.chown(two / "sub" / "more", 1000, 1000)
    for number, tree in enumerate((one, two)):
        for path in sorted(tree.rglob("*")):
            os.utime(path, ns=(0, 1_700_000_000_000_000_000 + number), follow_symlinks=False)
    trees = [base, one, two]
    images = [make_image(tree, work / f"stack{number}.erofs") for number, tree in enumerate(trees)]
    return Stack([Layer(image) for image in images], merged([survey(tree) for tree in trees]))


def small(work: Path, name: str, files: dict[str, bytes], **annotations: str) -> Layer:
    """A layer of a few files."""
    tree = work / f"{name}.tree"
    tree.mkdir()
    for path, content in files.items():
        write(tree / path, content)
    layer = Layer(make_image(tree, work / f"{name}.erofs"))
    if annotations:
        layer.descriptor["annotations"] = annotations
    return layer


def with_role(layer: Layer, role: str) -> Layer:
    layer.annotations[ROLE] = role
    layer.descriptor["annotations"] = layer.annotations
    return layer


def with_device(work: Path, name: str, content: bytes) -> tuple[Layer, Layer]:
    """A device, and a layer with the one file `name` whose content is there."""
    tree = work / f"{name}.tree"
    write(tree / name, content)
    blob = work / f"{name}.blob"
    image = make_image(tree, work / f"{name}.erofs", "--chunksize=4096", f"--blobdev={blob}")
    return with_role(Layer(blob, BLOB), "device"), Layer(image, EROFS)


def with_data(work: Path, name: str, content: bytes) -> tuple[Layer, Layer]:
    """A layer that lends the content of the file `name`, and the layer that has the name."""
    data, meta = work / f"{name}.data", work / f"{name}.meta"
    write(data / "objects" / name, content)
    path = write(meta / name, b"")
    os.truncate(path, len(content))
    os.setxattr(path, "trusted.overlay.metacopy", b"")
    os.setxattr(path, "trusted.overlay.redirect", f"/objects/{name}".encode())
    images = [make_image(tree, work / f"{tree.name}.erofs") for tree in (data, meta)]
    return with_role(Layer(images[0]), "overlay-data"), with_role(Layer(images[1]), "overlay-lower")
