"""The bytes of an entry's files that are not the blob's: the seal, the headers, the two maps and the sums' place.

    data    the blob, padded to a granule; then SEAL: magic, seal, size of the blob
    sums    a header, padded to MAP_OFFSET; then a CRC32C for each granule, in the machine's byte order
    live    a header of this boot; from SHARED_OFFSET on the C core's words; from MAP_OFFSET on a bit for each granule
    map     a header with the SHA-256 of the bits, padded to MAP_OFFSET; then the bits

What is written when, and what is believed, cache/entry.py says.
"""

from __future__ import annotations

import os
import struct
from hashlib import sha256

from ..core import GRANULE

MAP_OFFSET = 4096  # where the bits begin in both maps, and the sums in theirs: behind a page
SHARED_OFFSET = 2048  # from here to the bits the live map's page is the C core's (csrc/store/bitmap.h)
SEAL = struct.Struct("<16s16sQ")  # magic, seal, size of the blob
SEAL_MAGIC = b"pyerofs data 1\n\0"
_HEADER = struct.Struct("<16s16s16sQ32s")  # magic, seal, boot, size, SHA-256 of the bits (durable map only)
_HEADER_MAGIC = b"pyerofs map 2\n\0\0"
_SUMS_MAGIC = b"pyerofs sums 1\n\0"
_NO_CHECKSUM = bytes(32)
_NO_BOOT = bytes(16)


def boot_id() -> bytes:
    """Return what this boot of the machine is known by."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as f:
        return bytes.fromhex(f.read().decode().strip().replace("-", ""))


def granules(size: int) -> int:
    """Return how many granules a blob of `size` bytes has."""
    return (size + GRANULE - 1) // GRANULE


def map_bytes(size: int) -> int:
    """Return the length of the bits of a map: whole words of 64."""
    return (granules(size) + 63) // 64 * 8


def seal_offset(size: int) -> int:
    """Return where the seal lies in the data file."""
    return granules(size) * GRANULE


def trailer(seal: bytes, size: int) -> bytes:
    """Return what stands at seal_offset()."""
    return SEAL.pack(SEAL_MAGIC, seal, size)


def seal_of(data_fd: int, size: int) -> bytes | None:
    """Return the seal of a data file; None where it has none, or is of another size. Raises OSError."""
    found = os.pread(data_fd, SEAL.size + 1, seal_offset(size))
    if len(found) != SEAL.size:
        return None
    magic, seal, stated = SEAL.unpack(found)
    return bytes(seal) if magic == SEAL_MAGIC and stated == size else None


def stated_size(data_fd: int) -> int | None:
    """Return the size of the blob that the end of a data file states, unless the file's length contradicts it.

    Raises OSError.
    """
    end = os.fstat(data_fd).st_size
    found = os.pread(data_fd, SEAL.size, max(0, end - SEAL.size))
    if len(found) < SEAL.size:
        return None
    size = int(SEAL.unpack(found)[2])
    return size if seal_offset(size) + SEAL.size == end else None


def _header(seal: bytes, size: int, boot: bytes, checksum: bytes = _NO_CHECKSUM, magic: bytes = _HEADER_MAGIC) -> bytes:
    return _HEADER.pack(magic, seal, boot, size, checksum).ljust(MAP_OFFSET, b"\0")


def sums_header(seal: bytes, size: int) -> bytes:
    """Return what stands before the sums."""
    return _header(seal, size, _NO_BOOT, magic=_SUMS_MAGIC)


def live_header(seal: bytes, size: int) -> bytes:
    """Return what stands at the beginning of a live map of this boot."""
    return _header(seal, size, boot_id())[:SHARED_OFFSET]


def durable_map(seal: bytes, size: int, bits: bytes) -> bytes:
    """Return a whole durable map."""
    return _header(seal, size, _NO_BOOT, sha256(bits).digest()) + bits


def durable_bits(found: bytes, seal: bytes, size: int) -> bytes:
    """Return the bits of a durable map; none where it does not belong to this data file or is damaged."""
    bits = found[MAP_OFFSET:]
    return bits if len(bits) == map_bytes(size) and found == durable_map(seal, size, bits) else b""


def bytes_present(bits: bytes, size: int) -> int:
    """Return how many of the blob's `size` bytes a map has."""
    number = int.from_bytes(bits, "little")
    count = granules(size)
    beyond = count * GRANULE - size if number >> (count - 1) & 1 else 0
    return number.bit_count() * GRANULE - beyond
