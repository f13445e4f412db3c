"""A layer of an image out of an EROFS file: what lies behind it in its blob, its digest, its descriptor."""

from __future__ import annotations

import hashlib
import os
from typing import IO, Any, NamedTuple

from . import chunkindex, verity
from .document import descriptor
from .errors import ImageError
from .superblock import HEAD, Superblock, check_size, parse

MEDIA_TYPE = "application/vnd.erofs"
_ROLE = "org.erofs.role"
_LOWER = "overlay-lower"


class Made(NamedTuple):
    """A layer in the file `path`; `digest` is also its diff ID, for it is not compressed."""

    path: str
    digest: str
    size: int
    description: dict[str, Any]


class Recipe(NamedTuple):
    """How layers are made. `chunk_size` in bytes; `verity`: with a dm-verity tree."""

    chunk_size: int = chunkindex.CHUNK_SIZE
    verity: bool = False


def make_layer(path: str, recipe: Recipe) -> Made:
    """Makes the EROFS file at `path` a layer, by putting its index behind it, and before that its dm-verity tree.
    Raises ImageError."""
    hasher = hashlib.sha256()
    with open(path, "r+b") as file:
        superblock = parse(file.read(HEAD))
        check_size(superblock, os.fstat(file.fileno()).st_size)
        if superblock.extra_devices:
            raise ImageError("the EROFS image needs other devices, and so is no layer by itself")
        tree = _add_tree(file, superblock) if recipe.verity else {}
        file.seek(0)

        def read(count: int) -> bytes:
            piece = file.read(count)
            hasher.update(piece)
            return piece

        index = chunkindex.build(read, recipe.chunk_size)
        size = file.tell()
        file.write(index)
        hasher.update(index)
    digest = f"sha256:{hasher.hexdigest()}"
    annotations = {_ROLE: _LOWER, **tree, **chunkindex.describe(size, index)}
    return Made(path, digest, size + len(index), descriptor(MEDIA_TYPE, digest, size + len(index), annotations))


def _add_tree(file: IO[bytes], superblock: Superblock) -> dict[str, str]:
    """Gives the annotations that tell of the tree. Raises ImageError."""
    if superblock.block_size < verity.BLOCK:
        raise ImageError(
            f"the EROFS image has blocks of {superblock.block_size} bytes: the kernel cannot mount it by dm-verity, "
            f"which here has blocks of {verity.BLOCK}; make it with mkfs.erofs -b{verity.BLOCK}"
        )
    size = file.seek(0, os.SEEK_END)
    padding = -size % verity.BLOCK
    file.write(bytes(padding))
    file.seek(0)
    tree, root = verity.build(file.read)
    file.write(tree)
    return verity.describe(size + padding, root)
