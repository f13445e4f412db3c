"""Layers with dm-verity trees, made by veritysetup(8) or by ourselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pyerofs.erofs import dmverity
from tests.support.images import EROFS, Layer
from tests.support.needs import need


def add_tree(image: Path, *options: str, block: int = dmverity.BLOCK, superblock: bool = True) -> dict[str, str]:
    """Has veritysetup put its tree behind the image; gives the layer's annotations. `options`: of `veritysetup
    format`."""
    size = image.stat().st_size
    options = (*options, f"--data-block-size={block}", f"--hash-block-size={block}", f"--data-blocks={size // block}")
    options = (*options, f"--hash-offset={size}", *(() if superblock else ("--no-superblock",)))
    command = [need("veritysetup", "cryptsetup-bin"), "format", *options, str(image), str(image)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())}
    return {
        dmverity.HASH_OFFSET: str(size),
        dmverity.ROOT_DIGEST: f"{values['Hash algorithm']}:{values['Root hash']}",
        dmverity.BLOCK_SIZE: str(block),
    }


def own_tree(image: Path) -> dict[str, str]:
    """The same by dmverity.build()."""
    with image.open("r+b") as file:
        tree, root = dmverity.build(file.read)
        size = file.seek(0, 2)
        file.write(tree)
    return dmverity.describe(size, root)


def with_tree(layer: Layer, work: Path, *options: str, superblock: bool = True) -> Layer:
    """The layer, which has no index, with a tree of veritysetup; `work`: a directory for a moment."""
    path = work / "tree.erofs"
    path.write_bytes(layer.data)
    found = add_tree(path, *options, superblock=superblock)
    kind = str(layer.descriptor.get("mediaType", EROFS))
    return Layer(path.read_bytes(), kind, annotations={**layer.annotations, **found})
