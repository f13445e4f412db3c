"""Trees of files as columns: what an EROFS image is made of, without a filesystem.

A million files as objects would take a gigabyte; as columns, with a dictionary for each directory's names, they take
a hundred MiB. A file is a number, its row in the columns; rows are never removed, since what no directory names is not
written. Several trees (an image's layers, and what they make together) share one table and differ in their roots.
"""

from __future__ import annotations

import stat
from array import array
from typing import NamedTuple

WHITEOUT = 0  # the row of the deletion mark that overlayfs knows: a character device 0:0

Xattrs = tuple[tuple[bytes, bytes], ...]  # names in full and their values, sorted


class Attributes(NamedTuple):
    """What is said of a file of any kind. `mtime` in nanoseconds since 1970; `xattrs`: from `Tree.intern`."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: int = 0


class Tree:
    """The table of files. For one thread; nothing checks what is put in, the writer checks what it writes.

    Columns, by row: `mode` with the file type, `uid`, `gid`, `seconds` and `nanoseconds` of the modification time,
    `size` in bytes, `xattrs` (an index into `xattr_sets`), and `value`: of a regular file the number of its content in
    a DataMap, of a symbolic link an index into `targets`, of a device its rdev in the kernel's encoding.
    `children`: by a directory's row, its names and their rows.
    """

    __slots__ = (
        *("_interned", "children", "gid", "mode", "nanoseconds", "seconds", "size", "targets", "uid", "value"),
        *("xattr_sets", "xattrs"),
    )

    def __init__(self) -> None:
        self.mode = array("H")
        self.uid = array("I")
        self.gid = array("I")
        self.seconds = array("q")
        self.nanoseconds = array("I")
        self.size = array("Q")
        self.value = array("Q")
        self.xattrs = array("I")
        self.children: dict[int, dict[bytes, int]] = {}
        self.targets: list[bytes] = []
        self.xattr_sets: list[Xattrs] = [()]
        self._interned: dict[Xattrs, int] = {(): 0}
        self.add(stat.S_IFCHR, Attributes(0), 0, 0)

    def __len__(self) -> int:
        return len(self.mode)

    def add(self, kind: int, attributes: Attributes, size: int, value: int) -> int:
        """Add a row. `kind`: one of stat's S_IF constants. Gives the row's number."""
        mode, uid, gid, mtime, xattrs = attributes
        self.mode.append(kind | mode)
        self.uid.append(uid)
        self.gid.append(gid)
        seconds, nanoseconds = divmod(mtime, 1_000_000_000)
        self.seconds.append(seconds)
        self.nanoseconds.append(nanoseconds)
        self.size.append(size)
        self.value.append(value)
        self.xattrs.append(xattrs)
        return len(self.mode) - 1

    def add_directory(self, attributes: Attributes) -> int:
        """Add an empty directory."""
        row = self.add(stat.S_IFDIR, attributes, 0, 0)
        self.children[row] = {}
        return row

    def add_file(self, attributes: Attributes, size: int, content: int) -> int:
        """Add a regular file of `size` bytes. `content`: its number in the DataMap."""
        return self.add(stat.S_IFREG, attributes, size, content)

    def add_symlink(self, attributes: Attributes, target: bytes) -> int:
        """Add a symbolic link; the mode is 0777 whatever is said."""
        self.targets.append(target)
        return self.add(stat.S_IFLNK, attributes._replace(mode=0o777), len(target), len(self.targets) - 1)

    def add_device(self, kind: int, attributes: Attributes, major: int, minor: int) -> int:
        """Add a device, or, with 0:0, a fifo or a socket."""
        return self.add(kind, attributes, 0, (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12)

    def copy(self, row: int, value: int) -> int:
        """Add a row like another one, but for its value. A directory's copy is empty."""
        for column in (self.mode, self.uid, self.gid, self.seconds, self.nanoseconds, self.size, self.xattrs):
            column.append(column[row])
        self.value.append(value)
        if row in self.children:
            self.children[len(self.mode) - 1] = {}
        return len(self.mode) - 1

    def set_attributes(self, row: int, attributes: Attributes) -> None:
        """Change what is said of a file, not its kind."""
        mode, self.uid[row], self.gid[row], mtime, self.xattrs[row] = attributes
        self.mode[row] = stat.S_IFMT(self.mode[row]) | mode
        self.seconds[row], self.nanoseconds[row] = divmod(mtime, 1_000_000_000)

    def intern(self, xattrs: Xattrs) -> int:
        """Return the number of these xattrs, which must be sorted."""
        known = self._interned.get(xattrs)
        if known is None:
            known = self._interned[xattrs] = len(self.xattr_sets)
            self.xattr_sets.append(xattrs)
        return known
