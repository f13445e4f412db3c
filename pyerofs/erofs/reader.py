"""An EROFS image read without the kernel: inodes, names, xattrs, and where contents lie (the kernel's erofs_fs.h).

What any writer makes is read, but for compressed contents, which are refused by name when they are read. Whatever an
image gets wrong is an ImageError, and takes no more memory than it has bytes. Any thread.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from ..errors import ImageError
from .on_disk import DEVICE_SLOT, DIRENT, XATTR_HEADER
from .superblock import HEAD, OFFSET, parse

# Fills the buffer with the bytes from this offset on.
Fill = Callable[[memoryview, int], None]

_BLOCKS_CACHED = 4096
_PAGE = 65536  # bytes: any block size that a machine may mount
_KNOWN = 0x3F  # feature_incompat
_NOT_READ = {0x40: "long prefixes of xattr names", 0x80: "block numbers of 48 bits", 0x100: "a metadata box"}
PLAIN, COMPRESSED, INLINE, COMPACTED, CHUNKED = range(5)  # an inode's layout
_INDEXES = 0x20  # of a chunk's format: with a device's number each
_NONE = 0xFFFFFFFF
_ALGORITHMS = ("lz4", "lzma", "deflate", "zstd")
_NAMES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}
_SIZE_MAX = 1 << 62
_DIRECTORY_MAX = 1 << 30  # bytes
_TABLE_PART = 1 << 16  # chunks of a file that are looked up at once


class Inode(NamedTuple):
    """A file. `value`: of its layout, or a device's number; `position`: of what follows the inode and its xattrs."""

    nid: int
    layout: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    nlink: int
    value: int
    xattr_at: int
    position: int

    @property
    def rdev(self) -> tuple[int, int]:
        """Major and minor of a device file."""
        return self.value >> 8 & 0xFFF, self.value & 0xFF | self.value >> 12 & ~0xFF


class FileRange(NamedTuple):
    """A range of a file: `length` bytes at `start` of a device, or zeros where `device` is negative."""

    length: int
    device: int
    start: int


class _ExtraDevice(NamedTuple):
    blocks: int
    first: int  # its first block, as the image counts them


class ErofsReader:
    """`fill` of the primary device and `size` of it in bytes; `devices`: of the extra ones, in their order.

    `inodes`: how many the image says that it has. `block_size` in bytes.
    """

    def __init__(self, fill: Fill, size: int, devices: Sequence[tuple[Fill, int]] | None = ()) -> None:
        """Read the superblock. Raises ImageError, and what `fill` raises.

        `devices` None: nothing on them will be read, only where on them contents lie, whatever else the image has.
        """
        self._fills = [fill, *(each for each, _ in devices or ())]
        self._sizes = [size, *(each for _, each in devices or ())]
        head = self._read(0, 0, min(HEAD, size))
        self._super = parse(head, _PAGE)
        incompat = self._super.feature_incompat
        if devices is not None and incompat & ~_KNOWN:
            what = [name for bit, name in _NOT_READ.items() if incompat & bit] or [f"features {incompat & ~_KNOWN:#x}"]
            raise ImageError(f"the EROFS image has {' and '.join(what)}, which only the kernel reads: mount it")
        self.block_size = self._super.block_size
        self.root, self.inodes, epoch, nsec, meta, shared = struct.unpack_from("<HQQI4xII", head, OFFSET + 14)
        (slots,) = struct.unpack_from("<H", head, OFFSET + 88)
        self._epoch_ns = epoch * 10**9 + nsec
        self._meta, self._shared = meta * self.block_size, shared * self.block_size
        self._devices = self._read_devices(slots * DEVICE_SLOT.size, None if devices is None else len(devices))
        self._cached = lru_cache(_BLOCKS_CACHED)(self._read_block)
        self.inode = lru_cache(_BLOCKS_CACHED)(self._inode)
        self.names = lru_cache(256)(self.read_names)

    def _read_devices(self, at: int, given: int | None) -> list[_ExtraDevice]:
        count = self._super.extra_devices
        if given not in (count, None):
            raise ImageError(f"the EROFS image needs {count} more devices, and there are {given}")
        found = []
        for number in range(count):
            _, blocks, first = DEVICE_SLOT.unpack(self._read(0, at + number * DEVICE_SLOT.size, DEVICE_SLOT.size))
            found.append(_ExtraDevice(blocks, first))
        return found

    # Bytes

    def _read(self, device: int, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self._sizes[device]:
            raise ImageError("the EROFS image is corrupt: it points behind its end")
        data = bytearray(length)
        self._fills[device](memoryview(data), offset)
        return bytes(data)

    def _read_block(self, number: int) -> bytes:
        start = number * self.block_size
        return self._read(0, start, min(self.block_size, self._sizes[0] - start))

    def _metadata(self, offset: int, length: int) -> bytes:
        """Return bytes of the primary device by way of the cache of its blocks."""
        first, last = offset // self.block_size, (offset + length - 1) // self.block_size
        if last > first + 16:
            return self._read(0, offset, length)
        data = self._cached(first)
        if last > first:
            data = b"".join((data, *map(self._cached, range(first + 1, last + 1))))
        found = data[offset - first * self.block_size :][:length]
        if len(found) < length:
            raise ImageError("the EROFS image is corrupt: it points behind its end")
        return found

    # Inodes

    def _inode(self, nid: int) -> Inode:
        """Return the inode with this number."""
        at = self._meta + nid * 32
        head = self._metadata(at, 32)
        form, xattrs, mode, nlink, size = struct.unpack_from("<HHHHI", head)
        if form & 1:
            size, value, uid, gid, seconds, nsec, nlink = struct.unpack_from(
                "<QI4xIIqII", head + self._metadata(at + 32, 32), 8
            )
            mtime, end = seconds * 10**9 + nsec, at + 64
        else:
            value, _, uid, gid = struct.unpack_from("<IIHH", head, 16)
            mtime, end = self._epoch_ns, at + 32
        if size > _SIZE_MAX or not stat.S_IFMT(mode):
            raise ImageError(f"the EROFS image is corrupt: inode {nid} is none")
        body = XATTR_HEADER.size + 4 * (xattrs - 1) if xattrs else 0
        return Inode(nid, form >> 1 & 7, mode, uid, gid, mtime, size, nlink, value, end if body else 0, end + body)

    # Contents

    def pieces(self, inode: Inode, offset: int, length: int) -> Iterator[FileRange]:
        """Yield where a range of a file lies, which is within its size. Raises ImageError."""
        if inode.layout in (COMPRESSED, COMPACTED):
            raise ImageError(self._how_compressed(inode))
        if inode.layout == CHUNKED:
            yield from self._chunks(inode, offset, length)
            return
        if inode.layout not in (PLAIN, INLINE):
            raise ImageError(f"inode {inode.nid} has the layout {inode.layout}, which is not known here")
        blocks = -(-inode.size // self.block_size) - (inode.layout == INLINE)
        whole = min(inode.size, max(0, blocks) * self.block_size)
        if offset < whole:
            count = min(length, whole - offset)
            if inode.value == _NONE:
                yield FileRange(count, -1, 0)
            else:
                yield from self._at(inode.value * self.block_size + offset, count)
            offset, length = offset + count, length - count
        if length:
            yield FileRange(length, 0, inode.position + offset - whole)

    def _how_compressed(self, inode: Inode) -> str:
        advise, algorithm, bits = struct.unpack_from("<HBB", self._metadata(-(-inode.position // 8) * 8, 8), 4)
        name = dict(enumerate(_ALGORITHMS)).get(algorithm & 15, f"algorithm {algorithm & 15}")
        what = "is a fragment" if bits & 0x80 or advise & 0x20 else f"is compressed with {name}"
        return f"the file {what} inside the EROFS image, which only the kernel reads: `pyerofs mount` shows it"

    def _chunks(self, inode: Inode, offset: int, length: int) -> Iterator[FileRange]:
        bits = inode.value & 31
        chunk = self.block_size << bits
        unit = 8 if inode.value & _INDEXES else 4
        table = -(-inode.position // unit) * unit
        first, last = offset // chunk, (offset + length - 1) // chunk
        entries = b""
        for number in range(first, last + 1):
            at = (number - first) % _TABLE_PART * unit
            if not at:
                entries = self._metadata(table + number * unit, min(_TABLE_PART, last + 1 - number) * unit)
            within = max(0, offset - number * chunk)
            count = min(chunk - within, offset + length - number * chunk - within)
            device = 0
            if unit == 8:
                device, block = struct.unpack_from("<HI", entries, at + 2)
            else:
                (block,) = struct.unpack_from("<I", entries, at)
            if block == _NONE:
                yield FileRange(count, -1, 0)
            elif device:
                if device > len(self._devices):
                    raise ImageError(f"inode {inode.nid} lies on device {device}, and there are {len(self._devices)}")
                yield FileRange(count, device, block * self.block_size + within)
            else:
                yield from self._at(block * self.block_size + within, count)

    def _at(self, address: int, count: int) -> Iterator[FileRange]:
        """Find the device by an address in the space of all of them."""
        for number, device in enumerate(self._devices, 1):
            start = device.first * self.block_size
            if device.first and start <= address < start + device.blocks * self.block_size:
                yield FileRange(count, number, address - start)
                return
        yield FileRange(count, 0, address)

    def read_into(self, inode: Inode, view: memoryview, offset: int) -> None:
        """Fill the buffer with bytes of a file, which has them. Raises ImageError, and what `fill` raises."""
        done = 0
        for piece in merged(self.pieces(inode, offset, len(view)) if len(view) else iter(())):
            target = view[done : done + piece.length]
            if piece.device < 0:
                target[:] = bytes(piece.length)
            elif piece.device >= len(self._fills):
                raise ImageError(f"inode {inode.nid} lies on device {piece.device}, which is not to be read")
            else:
                # A device ends with its content, which need not fill the last block.
                there = max(0, min(piece.length, self._sizes[piece.device] - piece.start))
                if there < piece.length and (piece.length - there >= self.block_size or piece.device == 0):
                    raise ImageError("the EROFS image is corrupt: it points behind its end")
                self._fills[piece.device](target[:there], piece.start)
                target[there:] = bytes(piece.length - there)
            done += piece.length

    def content(self, inode: Inode) -> bytes:
        """Return all of a small file: a directory's, a link's."""
        if inode.size > min(_DIRECTORY_MAX, sum(self._sizes)):
            raise ImageError(f"the EROFS image is corrupt: inode {inode.nid} has {inode.size} bytes")
        data = bytearray(inode.size)
        self.read_into(inode, memoryview(data), 0)
        return bytes(data)

    # Names

    def read_names(self, inode: Inode) -> dict[bytes, tuple[int, int]]:
        """Return what a directory holds but for "." and "..": by name, in order, inode's number and file type.

        names() keeps what it has returned, for who asks again.
        """
        data = self.content(inode)
        found: dict[bytes, tuple[int, int]] = {}
        for start in range(0, len(data), self.block_size):
            block = data[start : start + self.block_size]
            first = struct.unpack_from("<H", block, 8)[0] if len(block) >= DIRENT.size else 0
            if not first or first % DIRENT.size or first > len(block):
                raise ImageError(f"the EROFS image is corrupt: directory {inode.nid}")
            entries = list(DIRENT.iter_unpack(block[:first]))
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            for (nid, at, kind, _), end in zip(entries, ends, strict=True):
                name = block[at:end].partition(b"\0")[0]
                if not name or b"/" in name or at > end:
                    raise ImageError(f"the EROFS image is corrupt: a name in directory {inode.nid}")
                if name not in (b".", b".."):
                    found[name] = nid, kind
        return found

    # Extended attributes

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return the extended attributes of a file."""
        at = inode.xattr_at
        if not at:
            return {}
        shared = self._metadata(at, XATTR_HEADER.size)[4]
        at += XATTR_HEADER.size
        numbers = struct.unpack(f"<{shared}I", self._metadata(at, 4 * shared)) if shared else ()
        places = [self._shared + 4 * number for number in numbers]
        found = dict(self._xattr(place)[:2] for place in places)
        at += 4 * shared
        while at < inode.position:
            name, value, size = self._xattr(at)
            found[name] = value
            at += size
        return found

    def _xattr(self, at: int) -> tuple[bytes, bytes, int]:
        length, prefix, size = struct.unpack("<BBH", self._metadata(at, 4))
        data = self._metadata(at + 4, length + size) if length + size else b""
        if prefix not in _NAMES:
            raise ImageError(f"the EROFS image has an xattr of the kind {prefix}, which is not known here: mount it")
        return _NAMES[prefix] + data[:length], data[length:], -(-(4 + length + size) // 4) * 4


def merged(pieces: Iterator[FileRange]) -> Iterator[FileRange]:
    """Put pieces that lie behind one another on a device together."""
    last: FileRange | None = None
    for piece in pieces:
        if last is None:
            last = piece
        elif last.device == piece.device and (last.device < 0 or last.start + last.length == piece.start):
            last = FileRange(last.length + piece.length, last.device, last.start)
        else:
            yield last
            last = piece
    if last is not None:
        yield last
