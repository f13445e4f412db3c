"""A tree and its data map become the metadata of an EROFS image: all of it in one zone, in front of the data.

    block 0     superblock and device slots, which may go on in further blocks
    then        shared xattrs, if any
    then        inodes in the order in which find(1) and ls -lR look at them, with what belongs to them: each
                directory's blocks, then the inodes of what it names (with small contents, link targets, and directories
                of less than a block behind them), then the same for each directory in it
    then        the data of the primary device, which the caller puts there

A reader that fetches lazily so reads the metadata of a thousand files in one go, and never the space between files. The
same tree and data map give the same bytes on any machine: the UUID is a hash of the rest, and no clock is asked.
"""

from __future__ import annotations

import hashlib
import stat
import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import ImageError
from . import on_disk
from .data_map import HOLE, DataMap
from .directories import directory_content, with_dots
from .on_disk import BLOCK, SLOT
from .plan import Plan, Survey, up
from .tree import Tree
from .xattrs import XattrTable

_NOTHING = 0xFFFFFFFF  # the first block of a file that has none


class Device(NamedTuple):
    """A device of data by its number in the DataMap. `size` in bytes; `tag`: up to 64 bytes that say which it is."""

    number: int
    size: int
    tag: bytes = b""


class Metadata(NamedTuple):
    """The metadata of an image.

    `data`: the image's first bytes, whole blocks; the primary device's data follow at once. `size` of the image's
    primary device, in bytes. `inodes`: how many files it has. `uuid`: 16 bytes.
    """

    data: bytearray
    size: int
    inodes: int
    uuid: bytes


def write_metadata(
    tree: Tree, root: int, contents: DataMap, primary: Device | None = None, extra: Sequence[Device] = ()
) -> Metadata:
    """Write the metadata of the tree below the directory `root`.

    `primary`: the device whose data follow the metadata in the same image; `extra`: those that stay devices of their
    own, in the order in which they are given to mount(2). Raises ImageError for what EROFS cannot hold, and for a
    content on none of these devices.
    """
    survey = Survey(tree, root)
    table = XattrTable(tree, survey.xattr_uses)
    slots_at = on_disk.SUPER_OFFSET + on_disk.SUPER_SIZE
    shared_at = up(slots_at + on_disk.DEVICE_SLOT.size * len(extra))
    inodes_at = shared_at + up(len(table.shared))
    base = inodes_at - BLOCK  # a nid of 0 would be an inode number of 0, which some programs take for no file
    plan = Plan(tree, root, contents, survey, table, inodes_at)
    size = plan.end + up(primary.size if primary else 0)
    ranges, slots = _devices(plan.end, size, primary, extra)
    data = bytearray(plan.end)
    data[shared_at : shared_at + len(table.shared)] = table.shared
    data[slots_at : slots_at + len(slots)] = slots
    _Packer(tree, contents, survey, table, plan, ranges, base).pack(data)

    def superblock(uuid: bytes, sum_of_block: int) -> None:
        on_disk.SUPERBLOCK.pack_into(
            data, on_disk.SUPER_OFFSET, on_disk.MAGIC, sum_of_block, on_disk.COMPAT, on_disk.BLOCK_BITS, 0,
            (plan.positions[root] - base) // SLOT, len(plan.order), *survey.epoch, size // BLOCK,
            base // BLOCK, shared_at // BLOCK if table.shared else 0, uuid, b"",
            (on_disk.CHUNKED if plan.chunk_maps else 0) | (on_disk.DEVICE_TABLE if extra else 0), 0, len(extra),
            slots_at // on_disk.DEVICE_SLOT.size if extra else 0,
        )  # fmt: skip

    superblock(bytes(16), 0)
    hasher = hashlib.sha256(data)
    for device in (*((primary,) if primary else ()), *extra):
        hasher.update(contents.identity(device.number))
    # overlayfs tells the layers of an image apart by their UUIDs. RFC 9562, version 8.
    uuid = bytearray(hasher.digest()[:16])
    uuid[6], uuid[8] = uuid[6] & 0x0F | 0x80, uuid[8] & 0x3F | 0x80
    superblock(bytes(uuid), 0)
    superblock(bytes(uuid), on_disk.checksum(data[on_disk.SUPER_OFFSET : BLOCK]))
    return Metadata(data, size, len(plan.order), bytes(uuid))


def _devices(
    end: int, size: int, primary: Device | None, extra: Sequence[Device]
) -> tuple[dict[int, tuple[int, int]], bytes]:
    """By a device's number, the image's numbers of its first block and of the one behind its last; and the slots."""
    ranges = {primary.number: (end // BLOCK, size // BLOCK)} if primary else {}
    at = size // BLOCK
    slots = []
    for device in extra:
        blocks = up(device.size) // BLOCK
        ranges[device.number] = (at, at + blocks)
        slots.append((device.tag, blocks, at))
        at += blocks
    if at > on_disk.BLOCKS_MAX:
        raise ImageError(f"the image has {at * BLOCK} bytes: EROFS images of less than 16 TiB are made")
    if len(extra) > on_disk.DEVICES_MAX:
        raise ImageError(f"the image has {len(extra)} devices: at most {on_disk.DEVICES_MAX} fit")
    return ranges, b"".join(on_disk.DEVICE_SLOT.pack(*slot) for slot in slots)


class _Packer:
    """The bytes of all inodes. `ranges`: see _devices; `base`: the byte that nids count from."""

    def __init__(
        self,
        tree: Tree,
        contents: DataMap,
        survey: Survey,
        table: XattrTable,
        plan: Plan,
        ranges: dict[int, tuple[int, int]],
        base: int,
    ) -> None:
        self._tree, self._contents, self._plan = tree, contents, plan
        self._links, self._bodies, self._ranges, self._base = survey.links, table.bodies, ranges, base

    def pack(self, data: bytearray) -> None:
        tree, plan, links = self._tree, self._plan, self._links
        modes, sizes, uids, gids, xattrs = tree.mode, tree.size, tree.uid, tree.gid, tree.xattrs
        seconds, nanoseconds, positions, is_compact = tree.seconds, tree.nanoseconds, plan.positions, plan.compact
        extended, compact = on_disk.EXTENDED.pack_into, on_disk.COMPACT.pack_into
        for number, row in enumerate(plan.order, 1):
            at, mode, size, xattr = positions[row], modes[row], sizes[row], xattrs[row]
            kind = mode & 0o170000
            tail = b""
            if kind == stat.S_IFREG:
                layout, value, tail = self._file(row, size, data)
            elif kind == stat.S_IFDIR:
                size = plan.sizes[row]
                layout, value, tail = self._lay(row, self._directory(row), data)
            elif kind == stat.S_IFLNK:
                layout, value, tail = self._lay(row, tree.targets[tree.value[row]], data)
            else:
                layout, value = on_disk.FLAT_PLAIN, tree.value[row]
            body = self._bodies[xattr]
            count = (len(body) - 12) // 4 + 1 if xattr else 0
            if is_compact[row]:
                compact(data, at, layout, count, mode, links[row], size, value, number, uids[row], gids[row])
                at += on_disk.COMPACT.size
            else:
                extended(
                    data, at, layout | 1, count, mode, size, value, number, uids[row], gids[row],
                    seconds[row], nanoseconds[row], links[row],
                )  # fmt: skip
                at += on_disk.EXTENDED.size
            if xattr:
                data[at : at + len(body)] = body
                at += len(body)
            if tail:
                data[at : at + len(tail)] = tail

    def _file(self, row: int, size: int, data: bytearray) -> tuple[int, int, bytes]:
        """Layout, the inode's value, and what stands behind the inode."""
        if not size:
            return on_disk.FLAT_PLAIN, 0, b""
        content = self._tree.value[row]
        inline = self._contents.inline.get(content)
        if inline is not None:
            return self._lay(row, inline, data)
        chunk_map = self._plan.chunk_maps.get(row)
        if chunk_map is None:
            return on_disk.FLAT_PLAIN, self._block(content, self._contents.starts[content], -(-size // BLOCK)), b""
        bits, chunks = chunk_map
        for extent in self._contents.extents.get(content, ()):
            shift = self._block(content, extent.start, extent.blocks) - extent.start // BLOCK
        if content:
            chunks = array("I", [chunk if chunk == HOLE else chunk + shift for chunk in chunks])
        if sys.byteorder == "big":
            chunks.byteswap()
        return on_disk.CHUNK_BASED, bits, chunks.tobytes()

    def _block(self, content: int, start: int, count: int) -> int:
        """Return the image's number of the block at byte `start` of the content's device; `count` of them are meant."""
        first, end = self._ranges.get(self._contents.devices[content], (0, 0))
        if first + start // BLOCK + count > end:
            raise ImageError("a file's content is on none of the image's devices")
        return first + start // BLOCK

    def _lay(self, row: int, content: bytes, data: bytearray) -> tuple[int, int, bytes]:
        """Do the same for what lies in the metadata."""
        at = self._plan.blocks.get(row)
        whole = len(content) if row in self._plan.not_inline else len(content) // BLOCK * BLOCK
        layout = on_disk.FLAT_INLINE if whole < len(content) else on_disk.FLAT_PLAIN
        if at is None:
            return layout, _NOTHING, content
        data[at : at + whole] = content[:whole]
        return layout, at // BLOCK, content[whole:]

    def _directory(self, row: int) -> bytes:
        children = self._tree.children[row]
        modes, positions, base, types = self._tree.mode, self._plan.positions, self._base, on_disk.FILE_TYPES
        rows = {b".": row, b"..": self._plan.parents[row], **children}
        names = list(rows) if next(iter(children), b"/") > b".." else list(with_dots(children))
        found = [rows[name] for name in names]
        return directory_content(
            names, [(positions[at] - base) // SLOT for at in found], [types[modes[at] >> 12] for at in found]
        )
