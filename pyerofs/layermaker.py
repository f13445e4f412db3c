"""A layer of an image out of an EROFS file: its chunk index behind it, its digest, its descriptor."""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple

from . import chunkindex
from .document import descriptor
from .errors import ImageError
from .superblock import HEAD, check_size, parse

MEDIA_TYPE = "application/vnd.erofs"
_ROLE = "org.erofs.role"
_LOWER = "overlay-lower"


class Made(NamedTuple):
    """A layer in the file `path`; `digest` is also its diff ID, for it is not compressed."""

    path: str
    digest: str
    size: int
    description: dict[str, Any]


def make_layer(path: str, chunk_size: int) -> Made:
    """Makes the EROFS file at `path` a layer, by putting its index behind it. Raises ImageError."""
    hasher = hashlib.sha256()
    with open(path, "r+b") as file:
        superblock = parse(file.read(HEAD))
        check_size(superblock, os.fstat(file.fileno()).st_size)
        if superblock.extra_devices:
            raise ImageError("the EROFS image needs other devices, and so is no layer by itself")
        file.seek(0)

        def read(count: int) -> bytes:
            piece = file.read(count)
            hasher.update(piece)
            return piece

        index = chunkindex.build(read, chunk_size)
        size = file.tell()
        file.write(index)
        hasher.update(index)
    digest = f"sha256:{hasher.hexdigest()}"
    annotations = {_ROLE: _LOWER, **chunkindex.describe(size, index)}
    return Made(path, digest, size + len(index), descriptor(MEDIA_TYPE, digest, size + len(index), annotations))
