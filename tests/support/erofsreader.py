"""A reader of EROFS images for tests, by the kernel's erofs_fs.h and independent of the writer: what a mount shows."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Sequence
from typing import NamedTuple

from tests.support.trees import Entry

BLOCK = 4096
PREFIXES = {1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}


class Inode(NamedTuple):
    """`position`: bytes, of what follows the inode and its xattrs."""

    nid: int
    layout: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    value: int
    nlink: int
    xattrs: dict[str, bytes]
    position: int


class Reader:
    """`devices`: the contents of the extra devices, in order."""

    def __init__(self, image: bytes, devices: Sequence[bytes] = ()) -> None:
        self.image, self.devices = image, devices
        (magic, self.checksum, _, bits, _, self.root, self.inos, epoch, nsec, self.blocks, meta, self.xattrs,
         self.uuid, _, self.incompat, _, count, slots) = struct.unpack_from(
            "<IIIBBHQQIIII16s16sIHHH", image, 1024)  # fmt: skip
        assert (magic, bits) == (0xE0F5E1E2, 12)
        self.epoch, self.meta = epoch * 10**9 + nsec, meta * BLOCK
        self.slots = [struct.unpack_from("<64sII", image, (slots + number) * 128) for number in range(count)]
        assert len(self.slots) == len(devices)

    def block(self, number: int) -> bytes:
        if number < self.blocks:
            found = self.image[number * BLOCK : (number + 1) * BLOCK]
        else:
            ((start, device),) = [
                (slot[2], device)
                for slot, device in zip(self.slots, self.devices, strict=True)
                if slot[2] <= number < slot[2] + slot[1]
            ]
            found = device[(number - start) * BLOCK : (number - start + 1) * BLOCK]
        return found.ljust(BLOCK, b"\0")

    def inode(self, nid: int) -> Inode:
        at = self.meta + nid * 32
        form, count, mode = struct.unpack_from("<HHH", self.image, at)
        if form & 1:
            assert at % BLOCK <= BLOCK - 64
            size, value, _, uid, gid, seconds, nanoseconds, nlink = struct.unpack_from("<QIIIIqII", self.image, at + 8)
            mtime, end = seconds * 10**9 + nanoseconds, at + 64
        else:
            nlink, size, reserved, value, _, uid, gid = struct.unpack_from("<HIIIIHH", self.image, at + 6)
            assert reserved == 0
            mtime, end = self.epoch, at + 32
        body = 12 + 4 * (count - 1) if count else 0
        xattrs = self._xattrs(end, body) if count else {}
        return Inode(nid, form >> 1, mode, uid, gid, mtime, size, value, nlink, xattrs, end + body)

    def _xattrs(self, at: int, length: int) -> dict[str, bytes]:
        shared = self.image[at + 4]
        found = {}
        for number in range(shared):
            (place,) = struct.unpack_from("<I", self.image, at + 12 + 4 * number)
            name, value, _ = self._xattr(self.xattrs * BLOCK + place * 4)
            found[name] = value
        entry, end = at + 12 + 4 * shared, at + length
        while entry < end:
            name, value, size = self._xattr(entry)
            assert name not in found
            found[name] = value
            entry += size
        assert entry == end
        return found

    def _xattr(self, at: int) -> tuple[str, bytes, int]:
        length, prefix, size = struct.unpack_from("<BBH", self.image, at)
        name = PREFIXES[prefix] + os.fsdecode(self.image[at + 4 : at + 4 + length])
        value = self.image[at + 4 + length : at + 4 + length + size]
        return name, value, -(-(4 + length + size) // 4) * 4

    def content(self, inode: Inode) -> bytes:
        size = inode.size
        if inode.layout == 4:
            bits = inode.value & 31
            assert not inode.value & 32
            chunks = -(-size // (BLOCK << bits))
            numbers = struct.unpack_from(f"<{chunks}I", self.image, inode.position)
            pieces = []
            for chunk, number in enumerate(numbers):
                blocks = min(1 << bits, -(-size // BLOCK) - (chunk << bits))
                pieces += [bytes(BLOCK) if number == 0xFFFFFFFF else self.block(number + at) for at in range(blocks)]
            return b"".join(pieces)[:size]
        whole, tail = -(-size // BLOCK), b""
        if inode.layout == 2:
            whole = size // BLOCK
            tail = self.image[inode.position : inode.position + size % BLOCK]
            assert inode.position % BLOCK + len(tail) <= BLOCK
        assert inode.layout in (0, 2)
        return (b"".join(self.block(inode.value + number) for number in range(whole)) + tail)[:size]

    def names(self, inode: Inode) -> dict[bytes, tuple[int, int]]:
        """Of a directory: nids and types; checks the order."""
        data = self.content(inode)
        found = {}
        last = b""
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            count = struct.unpack_from("<H", block, 8)[0] // 12
            entries = [struct.unpack_from("<QHBB", block, 12 * number) for number in range(count)]
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            for (nid, offset, kind, _), end in zip(entries, ends, strict=True):
                name = block[offset:end].rstrip(b"\0")
                assert last < name
                last = name
                found[name] = (nid, kind)
        return found

    def entries(self) -> dict[str, Entry]:
        """As trees.survey() of a mount."""
        found: dict[str, tuple[Inode, str]] = {}
        names: dict[int, list[str]] = {}
        pending = [(".", self.root, self.root)]
        while pending:
            path, nid, parent = pending.pop()
            inode = self.inode(nid)
            found[path] = (inode, self._text(inode))
            names.setdefault(nid, []).append(path)
            if stat.S_ISDIR(inode.mode):
                inner = self.names(inode)
                assert (inner.pop(b"."), inner.pop(b"..")) == ((nid, 2), (parent, 2))
                directories = 2
                for name, (of, kind) in inner.items():
                    mode = self.inode(of).mode
                    assert kind == {8: 1, 4: 2, 2: 3, 6: 4, 1: 5, 12: 6, 10: 7}[mode >> 12]
                    directories += kind == 2
                    pending.append((os.fsdecode(name) if path == "." else f"{path}/{os.fsdecode(name)}", of, nid))
                assert inode.nlink == directories
        assert self.inos == len(names)
        links = {nid: tuple(sorted(paths)) for nid, paths in names.items()}
        return {
            path: Entry(
                kind=stat.filemode(inode.mode)[0],
                mode=f"{stat.S_IMODE(inode.mode):04o}",
                owner=(inode.uid, inode.gid),
                mtime_ns=inode.mtime_ns,
                size=0 if stat.S_ISDIR(inode.mode) else inode.size,
                content=text,
                xattrs=dict(sorted(inode.xattrs.items())),
                links=links[inode.nid],
            )
            for path, (inode, text) in found.items()
            if stat.S_ISDIR(inode.mode) or inode.nlink == len(names[inode.nid]) or _fail(path)
        }

    def _text(self, inode: Inode) -> str:
        if stat.S_ISREG(inode.mode):
            return hashlib.sha256(self.content(inode)).hexdigest()
        if stat.S_ISLNK(inode.mode):
            return os.fsdecode(self.content(inode))
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            minor = inode.value & 0xFF | inode.value >> 12 & ~0xFF
            return f"{inode.value >> 8 & 0xFFF}:{minor}"
        return ""


def _fail(path: str) -> bool:
    raise AssertionError(f"{path} has another number of names than its inode says")
