"""The disk format, as far as it is written here (the kernel's fs/erofs/erofs_fs.h): little-endian structures.

Block size 4096, 32-bit block numbers, no compression: what every kernel since 5.16 mounts, and 5.4 without devices.
"""

from __future__ import annotations

import struct

from ..errors import ImageError

BLOCK = 4096
BLOCK_BITS = 12
SLOT = 32  # bytes: a nid counts these
BLOCKS_MAX = 0xFFFFFFFF  # the last number means "no block"
DEVICES_MAX = 0xFFFF
NAME_MAX = 255
TARGET_MAX = 4095  # of a symbolic link, as for symlink(2)

SUPER_OFFSET, SUPER_SIZE = 1024, 128
MAGIC = 0xE0F5E1E2
COMPAT = 0x1 | 0x2  # the checksum counts; times are modification times
CHUNKED, DEVICE_TABLE = 0x4, 0x8

# magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid, inos, epoch, fixed_nsec, blocks, meta_blkaddr,
# xattr_blkaddr, uuid, volume_name, feature_incompat, compression algorithms, extra_devices, devt_slotoff
SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHH38x")
DEVICE_SLOT = struct.Struct("<64sII56x")  # tag, blocks, uniaddr
# format, xattr_icount, mode, nlink, size, (mtime), value, ino, uid, gid
COMPACT = struct.Struct("<HHHHI4xIIHH4x")
# format, xattr_icount, mode, -, size, value, ino, uid, gid, mtime, mtime_nsec, nlink
EXTENDED = struct.Struct("<HHH2xQIIIIqII16x")
DIRENT = struct.Struct("<QHBB")  # nid, nameoff, file_type
FLAT_PLAIN, FLAT_INLINE, CHUNK_BASED = 0 << 1, 2 << 1, 4 << 1  # in an inode's format; bit 0: extended
FILE_TYPES = {0o10: 1, 0o04: 2, 0o02: 3, 0o06: 4, 0o01: 5, 0o14: 6, 0o12: 7}  # by the mode's upper four bits

XATTR_HEADER = struct.Struct("<IB7x")  # name filter, shared count
XATTR_ENTRY = struct.Struct("<BBH")  # name length, prefix, value size
XATTR_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
XATTR_VALUE_MAX = 65_535
XATTR_BODY_MAX = 12 + 4 * 65_534  # by the 16 bits of xattr_icount
XATTR_SHARED_MAX = 255


def xattr_prefix(name: bytes) -> int:
    """Return the number of the namespace of an xattr; 0: it cannot be stored."""
    for prefix, number in XATTR_PREFIXES:
        if number in (2, 3):
            if name == prefix:
                return number
        elif name.startswith(prefix) and len(name) > len(prefix):
            return number
    return 0


def xattr_entry(name: bytes, value: bytes) -> bytes:
    """Return an xattr as it is stored, padded. Raises ImageError for one beyond the format's limits."""
    number = xattr_prefix(name)
    if not number:
        raise ImageError(f"the xattr {name!r} is of a kind that EROFS cannot store")
    suffix = name[len(next(prefix for prefix, of in XATTR_PREFIXES if of == number)) :]
    if len(suffix) > NAME_MAX:
        raise ImageError(f"an xattr has a name of {len(suffix)} bytes behind its namespace: at most {NAME_MAX} fit")
    if len(value) > XATTR_VALUE_MAX:
        raise ImageError(f"the xattr {name.decode('utf-8', 'backslashreplace')!r} has {len(value)} bytes: at most "
                         f"{XATTR_VALUE_MAX} fit")  # fmt: skip
    entry = XATTR_ENTRY.pack(len(suffix), number, len(value)) + suffix + value
    return entry + bytes(-len(entry) % 4)


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def checksum(block: bytes | bytearray) -> int:
    """CRC32C as EROFS has it: without the inversion at the end. For some KiB: by a table, in Python."""
    table = _table()
    value = 0xFFFFFFFF
    for byte in block:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value
