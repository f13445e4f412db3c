"""A layer of an image out of an EROFS file: what lies behind it in its blob, its digest, its descriptor."""

from __future__ import annotations

import hashlib
import os
from typing import IO, Any, NamedTuple

from ..erofs import chunk_index, dmverity
from ..erofs.layer import CONTENT
from ..erofs.superblock import HEAD, Superblock, check_checksum, check_size, parse
from ..errors import ImageError
from ..oci.raw_manifest import descriptor

MEDIA_TYPE = "application/vnd.erofs"
_ZSTD = "+zstd"
_ROLE = "org.erofs.role"
_LOWER = "overlay-lower"


class BuiltLayer(NamedTuple):
    """A layer in the file `path`. `diff_id`: the digest of what it decompresses to."""

    path: str
    digest: str
    diff_id: str
    size: int
    description: dict[str, Any]


class Recipe(NamedTuple):
    """How layers are made. `chunk_size` in bytes; `verity`: with a dm-verity tree; `level`: of zstd, 0 for none."""

    chunk_size: int = chunk_index.CHUNK_SIZE
    verity: bool = False
    level: int = 0


def make_layer(path: str, recipe: Recipe) -> BuiltLayer:
    """Make the EROFS file at `path` a layer. Raises ImageError, UnavailableError.

    Its index is put behind it, and before that its dm-verity tree; or its compressed chunks with their index take its
    place.
    """
    with open(path, "r+b") as file:
        start = file.read(HEAD)
        superblock = parse(start)
        check_size(superblock, os.fstat(file.fileno()).st_size)
        check_checksum(superblock, start + file.read(max(0, superblock.checked - HEAD)))
        if superblock.extra_devices:
            raise ImageError("the EROFS image needs other devices, and so is no layer by itself")
        tree = _add_tree(file, superblock) if recipe.verity else {}
        file.seek(0)
        return (_compressed if recipe.level else _raw)(path, file, recipe, {_ROLE: _LOWER, **tree})


def _raw(path: str, file: IO[bytes], recipe: Recipe, annotations: dict[str, str]) -> BuiltLayer:
    hashed = _Hashed(file)
    index = chunk_index.build(hashed.read, recipe.chunk_size)
    size = file.tell()
    hashed.write(index)
    found = {**annotations, **chunk_index.describe(size, index)}
    return _made(path, MEDIA_TYPE, hashed.digest(), hashed.digest(), size + len(index), found)


def _compressed(path: str, file: IO[bytes], recipe: Recipe, annotations: dict[str, str]) -> BuiltLayer:
    from ..erofs.zstd import deflater  # deferred: needed here only

    deflate = deflater(recipe.level)
    image = _Hashed(file)
    partial = f"{path}.zst"
    with open(partial, "wb") as out:
        blob = _Hashed(out)
        index = chunk_index.build(image.read, recipe.chunk_size, lambda chunk: blob.write(deflate(chunk)))
        size = out.tell()
        section = blob.write(chunk_index.framed(index))
    os.replace(partial, path)
    content = image.digest()
    found = {**annotations, CONTENT: content, **chunk_index.describe(size, index, frame=True)}
    return _made(path, MEDIA_TYPE + _ZSTD, blob.digest(), content, size + len(section), found)


def _made(path: str, kind: str, digest: str, diff_id: str, size: int, annotations: dict[str, str]) -> BuiltLayer:
    return BuiltLayer(path, digest, diff_id, size, descriptor(kind, digest, size, annotations))


class _Hashed:
    """A file of which every byte that is read or written is hashed, in that order."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hasher = hashlib.sha256()

    def read(self, count: int) -> bytes:
        piece = self._file.read(count)
        self._hasher.update(piece)
        return piece

    def write(self, data: bytes) -> bytes:
        self._file.write(data)
        self._hasher.update(data)
        return data

    def digest(self) -> str:
        return f"sha256:{self._hasher.hexdigest()}"


def _add_tree(file: IO[bytes], superblock: Superblock) -> dict[str, str]:
    """Append the dm-verity tree and return the annotations that tell of it. Raises ImageError."""
    if superblock.block_size < dmverity.BLOCK:
        raise ImageError(
            f"the EROFS image has blocks of {superblock.block_size} bytes: the kernel cannot mount it by dm-verity, "
            f"which here has blocks of {dmverity.BLOCK}; make it with mkfs.erofs -b{dmverity.BLOCK}"
        )
    size = file.seek(0, os.SEEK_END)
    padding = -size % dmverity.BLOCK
    file.write(bytes(padding))
    file.seek(0)
    tree, root = dmverity.build(file.read)
    file.write(tree)
    return dmverity.describe(size + padding, root)
