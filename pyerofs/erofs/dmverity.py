"""The dm-verity tree of a layer: found by the layer's annotations, checked, and made. Pure values.

The image data of a layer are [EROFS image][tree], and the root digest in the annotations fixes every byte of the image.
The EROFS image specification has a superblock of veritysetup(8) at the tree's beginning, with the salt; containerd's
trees have neither, so both are read. Nothing that the superblock says weakens what the root digest vouches for: the
algorithm is the digest's, sizes are the annotations', and a salt that is not the tree's makes each hash a wrong one.

Formats: Documentation/admin-guide/device-mapper/verity.rst, cryptsetup's wiki (DMVerity).
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ImageError
from ..oci.reference import is_digest

if TYPE_CHECKING:
    from ..config.options import Verify

HASH_OFFSET = "org.erofs.dmverity.hash_offset"
ROOT_DIGEST = "org.erofs.dmverity.root_digest"
BLOCK_SIZE = "org.erofs.dmverity.block_size"
BLOCK = 4096  # bytes; what a tree has whose annotations do not say, and ours have
_PIECE = 1 << 20  # bytes that are read at once
HEAD = 512  # bytes of a superblock

_MAGIC = b"verity\0\0"
# magic, version, hash type, uuid, algorithm, block sizes of data and hashes, data blocks, size of the salt, salt
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")
_VERSION = 1
_TYPE = 1  # the salt comes first, each hash has a power of two bytes
_BLOCK_MIN = 512
_SALT_MAX = 256
_SHA256 = 32  # bytes
_NUMBER = re.compile(r"[0-9]{1,19}")
_SAYS = "its superblock"


class HashTree(NamedTuple):
    """A dm-verity tree as the annotations tell of it.

    It begins at byte `offset` of the image data, and covers all before that. `block` in bytes, `root` a digest with its
    algorithm.
    """

    offset: int
    block: int
    root: str


class Table(NamedTuple):
    """What a dm-verity device is made of.

    `blocks` of `block` bytes from the beginning on, verified by hashes that begin at byte `start`. `salt` and `root` in
    hex, `salt` "" for none.
    """

    blocks: int
    block: int
    start: int
    algorithm: str
    salt: str
    root: str


def choose(annotations: Mapping[str, str], how: Verify, what: str, log: Callable[[str], None]) -> HashTree | None:
    """Return the tree by which this machine's kernel is to verify a layer, as oci.verity has it.

    `what`: the layer, for messages. Raises ImageError.
    """
    try:
        tree = find(annotations, os.sysconf("SC_PAGESIZE"))
    except ImageError as e:
        raise ImageError(f"{what}: {e}") from None
    if tree is None:
        if how == "require":
            raise ImageError(f"{what} has no dm-verity tree: oci.verity=auto mounts it without one")
        log(f"{what} has no dm-verity tree, and is not verified by the kernel")
    return tree


def find(annotations: Mapping[str, str], page_size: int) -> HashTree | None:
    """Return the tree that a layer's descriptor tells of, or None.

    `page_size` (bytes) is the largest block that the kernel takes. Raises ImageError.
    """
    offset, root, block = (annotations.get(name) for name in (HASH_OFFSET, ROOT_DIGEST, BLOCK_SIZE))
    if offset is None and root is None:
        return None
    if offset is None or root is None:
        given, missing = (HASH_OFFSET, ROOT_DIGEST) if root is None else (ROOT_DIGEST, HASH_OFFSET)
        raise ImageError(f"the layer has the annotation {given}, but not {missing}")
    if not is_digest(root):
        raise ImageError(f"the annotation {ROOT_DIGEST} is not a sha256 or sha512 digest: {root[:80]!a}")
    size = BLOCK if block is None else _number(BLOCK_SIZE, block)
    if size < _BLOCK_MIN or size & (size - 1):
        raise ImageError(f"the annotation {BLOCK_SIZE} is {size}: it must be a power of two, {_BLOCK_MIN} or more")
    if size > page_size:
        raise ImageError(
            f"the dm-verity tree has blocks of {size} bytes, more than this kernel's pages of {page_size}: "
            "it cannot be used here"
        )
    start = _number(HASH_OFFSET, offset)
    if not start or start % size:
        raise ImageError(f"the annotation {HASH_OFFSET} is {start}, not a multiple of the block size {size}")
    return HashTree(start, size, root)


def _number(name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ImageError(f"the annotation {name} is not a number: {text[:80]!a}")
    return int(text)


def check_within(tree: HashTree, size: int) -> None:
    """Raise ImageError unless some of the tree can lie in image data of `size` bytes, so that table() has its head."""
    if tree.offset + HEAD > size:
        raise _corrupt(f"it begins at {tree.offset}, and the layer has {size} bytes of image data")


def table(tree: HashTree, head: bytes, size: int) -> Table:
    """`head`: the HEAD bytes at the tree's offset; `size`: of all image data. Raises ImageError."""
    algorithm, _, root = tree.root.partition(":")
    blocks = tree.offset // tree.block
    start, salt = tree.offset, b""
    if head.startswith(_MAGIC):
        _, version, kind, _, name, data_block, hash_block, count, salt_size, salts = _SUPERBLOCK.unpack(head)
        said = name.rstrip(b"\0").decode("latin-1")
        if version != _VERSION or kind != _TYPE:
            raise ImageError(f"the layer's dm-verity tree is of version {version}, type {kind}, which is not known")
        if said != algorithm:
            raise _corrupt(f"{_SAYS} says {said!a}, and the root digest is {algorithm}")
        if (data_block, hash_block) != (tree.block, tree.block):
            raise _corrupt(f"{_SAYS} has blocks of {data_block} and {hash_block} bytes instead of {tree.block}")
        if count != blocks:
            raise _corrupt(f"{_SAYS} has {count} blocks of data instead of {blocks}")
        if salt_size > _SALT_MAX:
            raise _corrupt(f"{_SAYS} has a salt of {salt_size} bytes")
        start, salt = tree.offset + tree.block, salts[:salt_size]
    end = start + tree.block * sum(_levels(blocks, tree.block, len(root) // 2))
    if end > size:
        raise _corrupt(f"it ends at {end}, and the layer has {size} bytes of image data")
    return Table(blocks, tree.block, start, algorithm, salt.hex(), root)


def _levels(blocks: int, block: int, hash_size: int) -> Iterator[int]:
    """Yield how many blocks each level of a tree has, the leaves first.

    A single block of data has no tree: the root digest is its own.
    """
    while blocks > 1:
        blocks = -(-blocks // (block // hash_size))
        yield blocks


def build(read: Callable[[int], bytes]) -> tuple[bytes, str]:
    """Return the tree, superblock included, over the bytes that `read(n)` gives, and its root digest.

    `read` returns n bytes, fewer only at the end, and whole blocks.

    Without a salt, and with a UUID that is the root digest's beginning: the same image gives the same bytes.
    """
    hashes = bytearray()
    while piece := memoryview(read(_PIECE)):
        if len(piece) % BLOCK:
            raise ValueError("the image does not end with a whole block")
        hashes += b"".join([hashlib.sha256(piece[at : at + BLOCK]).digest() for at in range(0, len(piece), BLOCK)])
    count = len(hashes) // _SHA256
    levels: list[bytearray] = []
    while len(hashes) > _SHA256:
        hashes += bytes(-len(hashes) % BLOCK)
        levels.insert(0, hashes)
        blocks = (hashes[at : at + BLOCK] for at in range(0, len(hashes), BLOCK))
        hashes = bytearray(b"".join(hashlib.sha256(block).digest() for block in blocks))
    root = bytes(hashes)
    head = _SUPERBLOCK.pack(_MAGIC, _VERSION, _TYPE, root[:16], b"sha256", BLOCK, BLOCK, count, 0, b"")
    return head.ljust(BLOCK, b"\0") + b"".join(levels), f"sha256:{root.hex()}"


def describe(offset: int, root: str) -> dict[str, str]:
    """Return the annotations that tell of a tree of ours at `offset`."""
    return {HASH_OFFSET: str(offset), ROOT_DIGEST: root, BLOCK_SIZE: str(BLOCK)}


def _corrupt(why: str) -> ImageError:
    return ImageError(f"the layer's dm-verity tree is corrupt: {why}")
