"""Where each inode of an image lies, and what belongs to it; writer.py says in which order, and why."""

from __future__ import annotations

import stat
from array import array
from collections import Counter

from ..errors import ImageError
from . import on_disk
from .data_map import DataMap
from .directories import directory_size
from .on_disk import BLOCK, SLOT
from .tree import Tree
from .xattrs import XattrTable

_COMPACT_SIZE, _EXTENDED_SIZE = on_disk.COMPACT.size, on_disk.EXTENDED.size
_UNSET = 0  # a position: no inode lies in block 0


def up(size: int) -> int:
    """Return the size in whole blocks, in bytes."""
    return -(-size // BLOCK) * BLOCK


class Survey:
    """What must be known before anything has its place. Puts the names of all directories in order.

    `links`: by row, how many names a file has (of a directory: as its nlink counts). `epoch`: the time that compact
    inodes have, in seconds and nanoseconds. `xattr_uses`: how many files have each set. Raises ImageError.
    """

    def __init__(self, tree: Tree, root: int) -> None:
        children, modes = tree.children, tree.mode
        self.links = links = array("I", bytes(4 * len(tree)))
        times: Counter[tuple[int, int]] = Counter()
        self.xattr_uses: Counter[int] = Counter()
        seconds, nanoseconds, xattrs = tree.seconds, tree.nanoseconds, tree.xattrs
        links[root] = 2
        times[seconds[root], nanoseconds[root]] += 1
        self.xattr_uses[xattrs[root]] += 1
        pending = [root]
        while pending:
            directory = pending.pop()
            names = children[directory]
            children[directory] = names = {name: names[name] for name in sorted(names)}
            for name, row in names.items():
                if not 0 < len(name) <= on_disk.NAME_MAX:
                    raise ImageError(f"a name has {len(name)} bytes: at most {on_disk.NAME_MAX} fit")
                if not links[row]:
                    times[seconds[row], nanoseconds[row]] += 1
                    self.xattr_uses[xattrs[row]] += 1
                if modes[row] & 0o170000 == stat.S_IFDIR:
                    if links[row]:
                        raise ImageError("a directory has two names")
                    links[directory] += 1
                    links[row] = 2
                    pending.append(row)
                else:
                    links[row] += 1
        # The commonest time, since compact inodes are half as large.
        common = [(-count, time) for time, count in times.items() if 0 <= time[0] < 1 << 32]
        self.epoch = min(common)[1] if common else (0, 0)


class Plan:
    """Places, by row. Raises ImageError for what EROFS cannot hold.

    `order`: the rows in the order of the layout; `positions` of inodes, in bytes; `compact`: whether they are of the
    short form; `blocks`: the byte where whole blocks of a directory, a link or a small file begin, which lie in the
    metadata too; `not_inline`: whose last bytes lie there and not behind the inode; `sizes` of directories; `parents`;
    `chunk_maps`: of contents with holes; `end`: of all, in bytes.
    """

    def __init__(self, tree: Tree, root: int, contents: DataMap, survey: Survey, table: XattrTable, start: int) -> None:
        self._tree, self._contents, self._bodies = tree, contents, table.bodies
        self._epoch, self._links = survey.epoch, survey.links
        self._end = start
        self._gap, self._gap_end = start, start  # what is left of a block that something did not fit into
        self.order = array("I")
        self.positions = array("Q", bytes(8 * len(tree)))
        self.compact = bytearray(len(tree))
        self.blocks: dict[int, int] = {}
        self.not_inline: set[int] = set()
        self.sizes: dict[int, int] = {}
        self.parents: dict[int, int] = {root: root}
        self.chunk_maps: dict[int, tuple[int, array[int]]] = {}
        self._place(root)
        self._place_below(root)
        self.end = up(self._end)

    def _place_below(self, root: int) -> None:
        pending = [root]
        modes, positions, children = self._tree.mode, self.positions, self._tree.children
        while pending:
            directory = pending.pop()
            size = self.sizes[directory]
            whole = up(size) if directory in self.not_inline else size // BLOCK * BLOCK
            if whole:
                self.blocks[directory] = self._take_blocks(whole)
            inner = []
            for row in children[directory].values():
                if positions[row] != _UNSET:
                    continue
                self._place(row)
                if modes[row] & 0o170000 == stat.S_IFDIR:
                    self.parents[row] = directory
                    inner.append(row)
            inner.reverse()
            pending += inner

    def _is_compact(self, row: int) -> bool:
        tree, epoch = self._tree, self._epoch
        return (
            tree.seconds[row] == epoch[0]
            and tree.nanoseconds[row] == epoch[1]
            and tree.uid[row] < 0x10000
            and tree.gid[row] < 0x10000
            and tree.size[row] < 1 << 32
            and self._links[row] < 0x10000
        )

    def _place(self, row: int) -> None:
        tree = self._tree
        self.order.append(row)
        kind = tree.mode[row] & 0o170000
        if self._is_compact(row):
            self.compact[row] = 1
            head = _COMPACT_SIZE
        else:
            head = _EXTENDED_SIZE
        if tree.xattrs[row]:
            head += len(self._bodies[tree.xattrs[row]])
        tail = 0
        if kind == stat.S_IFREG:
            content, size = tree.value[row], tree.size[row]
            if content in self._contents.inline:
                tail = size
            elif size and (found := self._contents.chunk_map(content, size)):
                self.chunk_maps[row] = found
                head += 4 * len(found[1])
        elif kind == stat.S_IFDIR:
            self.sizes[row] = size = directory_size(tree.children[row])
            tail = size % BLOCK
        elif kind == stat.S_IFLNK:
            tail = tree.size[row]
            if not 0 < tail <= on_disk.TARGET_MAX:
                raise ImageError(f"a symbolic link has a target of {tail} bytes: 1 to {on_disk.TARGET_MAX} fit")
        if tail and head + tail > BLOCK:  # it would have to lie in one block with its inode
            self.not_inline.add(row)
            if kind != stat.S_IFDIR:
                self.blocks[row] = self._take_blocks(BLOCK)
            tail = 0
        self.positions[row] = self._take(head + tail)

    def _take(self, size: int) -> int:
        """Make room for an inode with all that follows it: in one block, if it fits into one at all."""
        size = -(-size // SLOT) * SLOT
        at = self._gap
        if size <= self._gap_end - at:
            self._gap = at + size
            return at
        if size > -self._end % BLOCK:
            self._skip()
        at = self._end
        self._end = at + size
        return at

    def _take_blocks(self, size: int) -> int:
        self._skip()
        at = self._end
        self._end = at + size
        return at

    def _skip(self) -> None:
        """Go on at a new block; the rest of this one is for what fits into it."""
        at, end = self._end, up(self._end)
        if end - at > self._gap_end - self._gap:
            self._gap, self._gap_end = at, end
        self._end = end
