"""The files of an EROFS image, read out of its metadata: what they are called, and where their contents lie.

It is for what is known of an image to be told in names, and back: nothing that is read here is served. An image may
say anything; what does not make sense is an ImageError, and never more memory or time than its size allows.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import ImageError
from . import on_disk

_PIECE = 64 << 10  # bytes that are read and kept as one
_KEPT = 512  # pieces
_DIRECTORY_MAX = 256 << 20  # bytes
_LINKS_MAX = 40  # as in the kernel
_INDEXES = 0x20  # of a chunk format: 8 bytes a chunk, with its device
_HOLE = 0xFFFFFFFF
_CHUNKS_MAX = 1 << 24  # of one file
_ICOUNT_UNIT = 4
_INDEX = struct.Struct("<HHI")  # upper part of the block, device, block


class FileInode(NamedTuple):
    """An inode, by its number. `at`: the byte behind it and its xattrs; `value`: what its layout makes of it."""

    nid: int
    mode: int
    size: int
    layout: int
    value: int
    at: int


class Placed(NamedTuple):
    """Blocks of a file from its block `first` on: `blocks` of them, at the byte `start` of device number `device`."""

    first: int
    blocks: int
    device: int
    start: int


class PlacedFiles:
    """Reads one image. `read(offset, length)` gives bytes of its primary device, number 0. For one thread.

    `size`: its bytes. `check` is called for each inode, and may raise what ends it all. `devices`: how many more it
    has; they are numbered in the order of the device= options. `block`: bytes. Raises ImageError, and what `read`
    raises.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, check: Callable[[], None] = lambda: None) -> None:
        self._read_at, self._size, self._check = read, size, check
        self._pieces: dict[int, bytes] = {}
        head = self._read(on_disk.SUPER_OFFSET, on_disk.SUPER_SIZE)
        (
            magic, _, _, bits, _, root, self.inodes, _, _, _, meta, _, _, _, incompat, _, extra, slots,
        ) = on_disk.SUPERBLOCK.unpack(head)  # fmt: skip
        if magic != on_disk.MAGIC or not 9 <= bits <= 16:
            raise ImageError("it is not an EROFS image")
        self.block = 1 << bits
        self._base = meta * self.block
        self.root = root
        self.devices = extra if incompat & on_disk.DEVICE_TABLE else 0
        self._slots: list[tuple[int, int, int]] = []  # number of the first block, of the one behind the last, device
        for number in range(self.devices):
            place = (slots + number) * on_disk.DEVICE_SLOT.size
            _, blocks, first = on_disk.DEVICE_SLOT.unpack(self._read(place, on_disk.DEVICE_SLOT.size))
            self._slots.append((first, first + blocks, number + 1))

    def inode(self, nid: int) -> FileInode:
        """Return an inode by its number."""
        self._check()
        at = self._base + nid * on_disk.SLOT
        head = self._read(at, on_disk.COMPACT.size)
        form = int.from_bytes(head[:2], "little")
        if form & 1:
            form, icount, mode, size, value, *_ = on_disk.EXTENDED.unpack(self._read(at, on_disk.EXTENDED.size))
            at += on_disk.EXTENDED.size
        else:
            form, icount, mode, _, size, value, *_ = on_disk.COMPACT.unpack(head)
            at += on_disk.COMPACT.size
        if icount:
            at += on_disk.XATTR_HEADER.size + (icount - 1) * _ICOUNT_UNIT
        return FileInode(nid, mode, size, form >> 1 & 7, value, at)

    def placed(self, inode: FileInode) -> Iterator[Placed]:
        """Yield where the contents of a file or directory lie, but for holes and what stands behind the inode.

        Nothing of one that is compressed.
        """
        blocks = -(-inode.size // self.block)
        layout = inode.layout << 1
        if layout == on_disk.FLAT_PLAIN and blocks:
            yield self._find(0, blocks, inode.value)
        elif layout == on_disk.FLAT_INLINE:
            if blocks > 1 or (blocks and inode.size % self.block == 0):
                yield self._find(0, inode.size // self.block, inode.value)
        elif layout == on_disk.CHUNK_BASED and blocks:
            yield from self._chunks(inode, blocks)

    def _chunks(self, inode: FileInode, blocks: int) -> Iterator[Placed]:
        bits = inode.value & 0x1F
        count = (blocks - 1 >> bits) + 1
        if count > _CHUNKS_MAX:
            raise ImageError("a file has too many chunks")
        wide = bool(inode.value & _INDEXES)
        at = -(-inode.at // 8) * 8 if wide else inode.at
        last: Placed | None = None
        for number in range(count):
            if wide:
                high, device, low = _INDEX.unpack(self._read(at + 8 * number, 8))
                hole = low == _HOLE
                low |= high << 32 if not hole else 0
            else:
                device, low = 0, int.from_bytes(self._read(at + 4 * number, 4), "little")
                hole = low == _HOLE
            if hole:
                continue
            first = number << bits
            length = min(1 << bits, blocks - first)
            found = Placed(first, length, device, low * self.block) if device else self._find(first, length, low)
            if (
                last
                and last.device == found.device
                and last.first + last.blocks == found.first
                and last.start + last.blocks * self.block == found.start
            ):
                last = last._replace(blocks=last.blocks + found.blocks)
                continue
            if last:
                yield last
            last = found
        if last:
            yield last

    def _find(self, first: int, count: int, number: int) -> Placed:
        """Return the place of blocks by the image's number of the first one."""
        for begin, end, device in self._slots:
            if begin and begin <= number < end:
                return Placed(first, count, device, (number - begin) * self.block)
        return Placed(first, count, 0, number * self.block)

    def names(self, inode: FileInode) -> Iterator[tuple[bytes, int]]:
        """Yield the names of a directory with the numbers of their inodes, "." and ".." left out."""
        if inode.size > min(_DIRECTORY_MAX, self._size):
            raise ImageError("a directory has an impossible size")
        for offset in range(0, inode.size, self.block):
            block = self._content(inode, offset, min(self.block, inode.size - offset))
            if len(block) < on_disk.DIRENT.size:
                raise ImageError("a directory is cut short")
            count = int.from_bytes(block[8:10], "little") // on_disk.DIRENT.size
            if not 0 < count * on_disk.DIRENT.size <= len(block):
                raise ImageError("a directory is corrupt")
            entries = [on_disk.DIRENT.unpack_from(block, 12 * number) for number in range(count)]
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            for (nid, at, _, _), end in zip(entries, ends, strict=True):
                name = block[at:end].rstrip(b"\0")
                if name not in (b".", b"..", b""):
                    yield name, nid

    def _content(self, inode: FileInode, offset: int, length: int) -> bytes:
        """Return bytes of a directory or a link, within one block."""
        tail = inode.size // self.block * self.block
        if inode.layout << 1 == on_disk.FLAT_INLINE and offset >= tail:
            return self._read(inode.at + offset - tail, length)
        for place in self.placed(inode):
            begin = place.first * self.block
            if begin <= offset < begin + place.blocks * self.block and not place.device:
                return self._read(place.start + offset - begin, length)
        raise ImageError("a directory or link has no place in the image")

    def lookup(self, path: bytes) -> FileInode | None:
        """Return what a path leads to, symbolic links followed within the image; None where it leads nowhere."""
        way = [self.inode(self.root)]
        pending = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                way = way[:-1] or way
                continue
            if not stat.S_ISDIR(way[-1].mode):
                return None
            nid = next((nid for name, nid in self.names(way[-1]) if name == part), None)
            if nid is None:
                return None
            found = self.inode(nid)
            if stat.S_ISLNK(found.mode):
                links += 1
                if links > _LINKS_MAX or not 0 < found.size <= on_disk.TARGET_MAX:
                    return None
                target = self._content(found, 0, found.size)
                if target.startswith(b"/"):
                    del way[1:]
                pending += [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
                continue
            way.append(found)
        return way[-1]

    def walk(self, root: FileInode | None = None, path: bytes = b"") -> Iterator[tuple[bytes, FileInode]]:
        """Yield each file below a directory by one of its names, directories before what they contain."""
        seen: set[int] = set()
        pending = [(path, root or self.inode(self.root))]
        while pending:
            path, inode = pending.pop()
            if inode.nid in seen:
                continue
            seen.add(inode.nid)
            yield path or b"/", inode
            if stat.S_ISDIR(inode.mode):
                pending += [(path + b"/" + name, self.inode(nid)) for name, nid in self.names(inode)][::-1]

    def _read(self, at: int, length: int) -> bytes:
        if at < 0 or at + length > self._size:
            raise ImageError("its metadata point beyond its end")
        begin = at // _PIECE * _PIECE
        if at + length > begin + _PIECE:
            return self._read(at, begin + _PIECE - at) + self._read(begin + _PIECE, at + length - begin - _PIECE)
        piece = self._pieces.get(begin)
        if piece is None:
            if len(self._pieces) >= _KEPT:
                del self._pieces[next(iter(self._pieces))]
            piece = self._pieces[begin] = self._read_at(begin, min(_PIECE, self._size - begin))
        return piece[at - begin : at - begin + length]
