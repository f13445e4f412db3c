"""The EROFS superblock (the kernel's fs/erofs/erofs_fs.h, struct erofs_super_block): is this an image we can attach?"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import ImageError
from .on_disk import checksum

OFFSET = 1024  # bytes from the image's start
SIZE = 128  # bytes, without extension slots
HEAD = OFFSET + SIZE  # bytes of an image that `parse` needs

_LOOK = 8192  # bytes in which what is no EROFS image may be told
_MAGIC = 0xE0F5E1E2
_CHECKSUM = 0x00000001  # feature_compat: the checksum counts
_MAGIC_BYTES = _MAGIC.to_bytes(4, "little")
_DEVICE_TABLE = 0x00000008  # feature_incompat: extra_devices counts
_48BIT = 0x00000080  # feature_incompat: the block count may have 48 bits
_BLOCK_BITS = range(9, 17)  # 512 bytes to 64 KiB, all that any kernel's page size allows

# magic, checksum, feature_compat, blkszbits, sb_extslots, blocks_hi or rootnid_2b, inos, epoch, fixed_nsec, blocks_lo,
# meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, compression algorithms, extra_devices, what lies
# between, rootnid_8b
_LAYOUT = struct.Struct("<IIIBBH8x8x4xI4x4x16s16sIHH24xQ")

_DISK = "a whole disk with a partition table: give one of its partitions (`losetup --partscan` shows them)"
_PARTITIONS = range(446, 510, 16)  # of an MBR: its four entries, each with a status and, 4 bytes on, a type
_FORMATS = (
    (0, b"\x1f\x8b", "gzip data (an ordinary compressed layer?)"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data (an ordinary compressed layer?)"),
    (0, b"BZh", "bzip2 data"),
    (0, b"\xfd7zXZ\x00", "xz data"),
    (257, b"ustar", "a tar archive (an ordinary layer?)"),
    (0, b"hsqs", "a squashfs image"),
    (0, b"sqsh", "a squashfs image"),
    (OFFSET + 56, b"\x53\xef", "an ext2, ext3 or ext4 image"),
    (0, b"XFSB", "an XFS image"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"\x3a\xff\x26\xed", "a sparse Android image: `simg2img` makes a plain one of it"),
    (512, b"EFI PART", _DISK),
    (4096, b"EFI PART", _DISK),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x7fELF", "an ELF file"),
    (0, b"\xcd\xe4\xec\x67", "an EROFS chunk index"),
    (0, b"{", "JSON text"),
    (0, b"<", "HTML or XML text"),
)


@dataclass(frozen=True, slots=True)
class Superblock:
    """`block_size` in bytes, `blocks` of the primary device; `extra_devices` must be given by `device=` options."""

    block_size: int
    blocks: int
    feature_compat: int
    feature_incompat: int
    uuid: str
    volume_name: str
    extra_devices: int

    @property
    def size(self) -> int:
        """Bytes of the primary device."""
        return self.blocks * self.block_size

    @property
    def checked(self) -> int:
        """Bytes from the image's start to the end of what its checksum covers: that of the superblock's block."""
        return max(self.block_size, OFFSET + min(self.block_size, OFFSET))


def parse(head: bytes, page_size: int = 4096) -> Superblock:
    """Parse the superblock in the first HEAD bytes, or more, of an image.

    Raises ImageError where it is not EROFS, or has blocks above the `page_size` (bytes), which no kernel mounts.
    """
    if head[OFFSET : OFFSET + 4] != _MAGIC_BYTES:
        raise ImageError(f"not an EROFS image: {_looks_like(head)}")
    if len(head) < HEAD:
        raise ImageError(f"the EROFS image is truncated: {len(head)} bytes end inside its superblock")
    (_, _, compat, bits, _, blocks_high, blocks, uuid, volume, incompat, _, devices, root) = _LAYOUT.unpack_from(
        head, OFFSET
    )
    if bits not in _BLOCK_BITS:
        raise ImageError(f"the EROFS superblock is corrupt: its block size is 2^{bits} bytes")
    if 1 << bits > page_size:
        raise ImageError(
            f"the EROFS image has blocks of {1 << bits} bytes, more than this kernel's pages of {page_size}: "
            f"it cannot be mounted here; make it with mkfs.erofs -b{page_size}"
        )
    digits = uuid.hex()
    return Superblock(
        block_size=1 << bits,
        # A root whose number fits into 16 bits stays where it always was, in the place of the upper half.
        blocks=blocks | (blocks_high << 32 if incompat & _48BIT and root else 0),
        feature_compat=compat,
        feature_incompat=incompat,
        uuid="-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])),
        volume_name=volume.partition(b"\0")[0].decode("utf-8", "backslashreplace"),
        extra_devices=devices if incompat & _DEVICE_TABLE else 0,
    )


def check_checksum(superblock: Superblock, start: bytes) -> None:
    """Refuse an image whose superblock has not the checksum that it states, as the kernel does. Raises ImageError.

    `start`: the image's first bytes, `superblock.checked` of them at least.
    """
    if not superblock.feature_compat & _CHECKSUM:
        return
    end = superblock.checked
    stated = int.from_bytes(start[OFFSET + 4 : OFFSET + 8], "little")
    # The field itself counts as zeros.
    if len(start) < end or checksum(start[OFFSET : OFFSET + 4] + bytes(4) + start[OFFSET + 8 : end]) != stated:
        raise ImageError("the EROFS superblock is corrupt: its checksum is wrong, and no kernel mounts it")


def inodes(head: bytes) -> int:
    """How many files the image says that it has."""
    return int.from_bytes(head[OFFSET + 16 : OFFSET + 24], "little")


def first_look(file: BinaryIO, name: str) -> None:
    """Refuse a file or device that cannot be an EROFS image, before anything is attached. Raises ImageError, OSError.

    `name`: of the file, for messages.
    """
    try:
        head = file.read(_LOOK)
        check_size(parse(head, os.sysconf("SC_PAGESIZE")), file.seek(0, os.SEEK_END))
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None


def check_size(superblock: Superblock, size: int) -> None:
    """Raise ImageError where a blob or file of `size` bytes is shorter than its superblock says."""
    if size < superblock.size:
        raise ImageError(
            f"the EROFS image is truncated: it has {size} bytes, and {superblock.size} by its superblock "
            f"({superblock.blocks} blocks of {superblock.block_size})"
        )


def known_format(head: bytes) -> str:
    """Name what begins so, with an article; "" for what is not known."""
    for offset, magic, name in _FORMATS:
        if head.startswith(magic, offset):
            return name
    return _DISK if _has_mbr(head) else ""


def _looks_like(head: bytes) -> str:
    name = known_format(head)
    if name:
        return f"it looks like {name}"
    if len(head) < HEAD:
        return f"it has only {len(head)} bytes, and an EROFS image at least {HEAD}"
    return "it has only zeros where the superblock should be" if not any(head) else "there is no EROFS superblock in it"


def _has_mbr(head: bytes) -> bool:
    """Boot sectors of filesystems have the same signature, but no entries that are all sound."""
    if head[510:512] != b"\x55\xaa":
        return False
    statuses, types = ([head[at + part] for at in _PARTITIONS] for part in (0, 4))
    return set(statuses) <= {0, 0x80} and any(types)
