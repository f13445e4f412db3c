"""A directory of this machine into a tree, as it is. The only module here that does I/O.

It needs no root, except to read what only root can read. Nobody changes the directory meanwhile: a file that turns out
longer or shorter than it was is refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator

from ..errors import ImageError, UnavailableError
from ..tar.reader import show
from . import on_disk
from .laying import PIECE, Laying
from .paths import check_depth
from .storable_xattrs import LeftOut
from .tree import Attributes, Tree

_LABEL = b"security.selinux"  # given by the system that runs the image
_KINDS = {stat.S_IFREG: "files", stat.S_IFDIR: "directories", stat.S_IFLNK: "symbolic links", stat.S_IFIFO: "fifos"}


class Walk:
    """Read a directory into a tree, and lay the contents.

    `root`: its row. Whiteouts and the xattrs of overlayfs are taken over, for layers built by hand.
    `left_out`: how many xattrs could not be stored. Raises ImageError, and UnavailableError for what cannot be
    read.
    """

    def __init__(self, path: bytes, tree: Tree, laying: Laying) -> None:
        self._tree, self._laying = tree, laying
        self._linked: dict[tuple[int, int], int] = {}
        self.left_out: Counter[LeftOut] = Counter()
        self.root = self._read(path)
        if self.root not in tree.children:
            raise ImageError(f"{show(path)} is not a directory")
        pending = [(path, self.root, 1)]
        while pending:
            directory, row, depth = pending.pop()
            check_depth(depth)
            for name in sorted(_list(directory)):
                inner = os.path.join(directory, name)
                tree.children[row][name] = found = self._read(inner)
                if found in tree.children:
                    pending.append((inner, found, depth + 1))

    def _read(self, path: bytes) -> int:
        try:
            return self._add(path, os.lstat(path))
        except OSError as error:
            raise UnavailableError(f"cannot read {show(path)}: {error.strerror}") from None

    def _add(self, path: bytes, status: os.stat_result) -> int:
        tree, kind = self._tree, stat.S_IFMT(status.st_mode)
        key = (status.st_dev, status.st_ino)
        if kind != stat.S_IFDIR and key in self._linked:
            return self._linked[key]
        attributes = Attributes(
            stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, self._xattrs(path, kind)
        )
        if kind == stat.S_IFDIR:
            return tree.add_directory(attributes)
        if kind == stat.S_IFREG:
            size = status.st_size
            row = tree.add_file(attributes, size, self._laying.lay(size, _pieces(path, size)))
        elif kind == stat.S_IFLNK:
            row = tree.add_symlink(attributes, os.readlink(path))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            row = tree.add_device(kind, attributes, os.major(status.st_rdev), os.minor(status.st_rdev))
        else:
            row = tree.add_device(kind, attributes, 0, 0)
        if status.st_nlink > 1:
            self._linked[key] = row
        return row

    def _xattrs(self, path: bytes, kind: int) -> int:
        found = []
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENOTSUP:  # of a filesystem without any
                raise
            names = []
        for name in sorted(map(os.fsencode, names)):
            if name == _LABEL:
                continue
            if on_disk.xattr_prefix(name):
                found.append((name, os.getxattr(path, name, follow_symlinks=False)))
            else:
                self.left_out[LeftOut(os.fsdecode(name), _KINDS.get(kind, "devices"))] += 1
        return self._tree.intern(tuple(found))


def _list(path: bytes) -> list[bytes]:
    try:
        return os.listdir(path)
    except OSError as error:
        raise UnavailableError(f"cannot read {show(path)}: {error.strerror}") from None


def _pieces(path: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield what is no hole of a file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        end = 0
        while end < size:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError as error:
                if os.fstat(descriptor).st_size != size:
                    break
                if error.errno != errno.ENXIO:  # which means: a hole up to the end
                    raise
                break
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
            while start < end and (piece := os.pread(descriptor, min(PIECE, end - start), start)):
                yield start, piece
                start += len(piece)
            if start < end:
                break
        if os.fstat(descriptor).st_size != size:
            raise ImageError(f"{show(path)} changed its size while it was read")
    finally:
        os.close(descriptor)
