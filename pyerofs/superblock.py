"""The EROFS superblock (the kernel's fs/erofs/erofs_fs.h, struct erofs_super_block): is this an image we can attach?"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .errors import ImageError

OFFSET = 1024  # bytes from the image's start
SIZE = 128  # bytes, without extension slots
HEAD = OFFSET + SIZE  # bytes of an image that `parse` needs

_MAGIC = 0xE0F5E1E2
_CHECKSUM = 0x00000001  # feature_compat: the checksum counts
_MAGIC_BYTES = _MAGIC.to_bytes(4, "little")
_DEVICE_TABLE = 0x00000008  # feature_incompat: extra_devices counts
_48BIT = 0x00000080  # feature_incompat: root_nid's place holds the upper half of the block count
_BLOCK_BITS = range(9, 17)  # 512 bytes to 64 KiB, all that any kernel's page size allows

# magic, checksum, feature_compat, blkszbits, sb_extslots, blocks_hi (or root_nid), inos, epoch, fixed_nsec, blocks_lo,
# meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, compression algorithms, extra_devices
_LAYOUT = struct.Struct("<IIIBBH8x8x4xI4x4x16s16sIHH")

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


def parse(head: bytes, page_size: int = 4096) -> Superblock:
    """Reads the superblock from the first HEAD bytes, or more, of an image.

    Raises ImageError where it is not EROFS, or has blocks above the `page_size` (bytes), which no kernel mounts.
    """
    if head[OFFSET : OFFSET + 4] != _MAGIC_BYTES:
        raise ImageError(f"not an EROFS image: {_looks_like(head)}")
    if len(head) < HEAD:
        raise ImageError(f"the EROFS image is truncated: {len(head)} bytes end inside its superblock")
    (_, _, compat, bits, _, blocks_high, blocks, uuid, volume, incompat, _, devices) = _LAYOUT.unpack_from(head, OFFSET)
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
        blocks=blocks | (blocks_high << 32 if incompat & _48BIT else 0),
        feature_compat=compat,
        feature_incompat=incompat,
        uuid="-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])),
        volume_name=volume.partition(b"\0")[0].decode("utf-8", "backslashreplace"),
        extra_devices=devices if incompat & _DEVICE_TABLE else 0,
    )


def sealed(block: bytes, uuid: bytes, build_time: int | None) -> bytes:
    """The image's first block with this UUID (16 bytes), and with this time of making (seconds since 1970) unless None.

    `block` has been read by parse(), and is a whole one.
    """
    changed = bytearray(block)
    changed[OFFSET + 48 : OFFSET + 64] = uuid
    if build_time is not None:
        struct.pack_into("<QI", changed, OFFSET + 24, build_time, 0)
    if parse(block).feature_compat & _CHECKSUM:
        changed[OFFSET + 4 : OFFSET + 8] = bytes(4)
        struct.pack_into("<I", changed, OFFSET + 4, _crc32c(bytes(changed[OFFSET:])))
    return bytes(changed)


def inodes(head: bytes) -> int:
    """How many files the image says that it has."""
    return int.from_bytes(head[OFFSET + 16 : OFFSET + 24], "little")


def _crc32c(data: bytes) -> int:
    """As EROFS has it: without the inversion at the end."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


def check_size(superblock: Superblock, size: int) -> None:
    """Raises ImageError where a blob or file of `size` bytes is shorter than its superblock says."""
    if size < superblock.size:
        raise ImageError(
            f"the EROFS image is truncated: it has {size} bytes, and {superblock.size} by its superblock "
            f"({superblock.blocks} blocks of {superblock.block_size})"
        )


def _looks_like(head: bytes) -> str:
    for offset, magic, name in _FORMATS:
        if head.startswith(magic, offset):
            return f"it looks like {name}"
    if len(head) < HEAD:
        return f"it has only {len(head)} bytes, and an EROFS image at least {HEAD}"
    return "it has only zeros where the superblock should be" if not any(head) else "there is no EROFS superblock in it"
