"""A layer's tar stream into a directory, as overlayfs wants a layer to be. Needs root, and the directory to itself.

OCI image spec, "Image Layer Filesystem Changeset". A layer does not stand alone: a hard link may name a file of a lower
layer, which is then taken into this one; so are the attributes of directories that it only passes through. Symbolic
links on the way to a name are followed within the image, as container engines do.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..errors import ImageError, UnavailableError
from . import reader as tar_reader
from .overlay_view import OPAQUE, Parts, ViewEntry, find_visible, is_whiteout, lookup, resolve, split
from .reader import Tar, TarEntry, show

_WHITEOUT = b".wh."
_OPAQUE_MARK = b".wh..wh..opq"
_AUFS = b".wh..wh."  # what aufs kept for itself
_SMALL = 1 << 20  # bytes that are not asked for room
# Not taken over: overlayfs would obey the first, and labels are given by the system that runs the image.
_OVERLAY, _LABEL = b"trusted.overlay.", b"security.selinux"
_NODES = {tar_reader.CHARACTER: stat.S_IFCHR, tar_reader.BLOCK: stat.S_IFBLK, tar_reader.FIFO: stat.S_IFIFO}
_KINDS = {
    stat.S_IFREG: "files",
    stat.S_IFDIR: "directories",
    stat.S_IFLNK: "symbolic links",
    stat.S_IFIFO: "fifos",
    stat.S_IFCHR: "devices",
    stat.S_IFBLK: "devices",
}
# Times that every image is made with, in nanoseconds: ext4's range, 1901 to 2446, but for its first and last second,
# of which the kernel keeps no fractions. What lies outside is clamped here and not by the filesystem that is unpacked
# on, since then the same image would have another digest on another one.
MTIME_MIN, MTIME_MAX = (1 - 2**31) * 10**9, (2**34 - 2**31 - 2) * 10**9
_COMMON_TIMES = range(0, 2**31 * 10**9)  # which every filesystem keeps


class LeftOut(NamedTuple):
    """Extended attributes of this name that files of this kind cannot have on Linux."""

    name: str
    kind: str


def unpack(
    tar: Tar, root: bytes, lowers: Sequence[bytes], take: Callable[[int], None] = lambda _: None
) -> Counter[LeftOut]:
    """Put the layer into `root`, an empty directory; `lowers`: the layers below it, unpacked, the uppermost first.

    `take` is called with the bytes of holes in sparse files, which the archive does not have; it may raise ImageError.
    Return what could not be taken over, with how many entries had it. Raises ImageError that names the entry, and
    UnavailableError where this machine or the filesystem of `root` cannot.
    """
    work = _Unpacking(root, lowers, take)
    for entry in tar:
        try:
            work.add(entry, tar)
        except ImageError as error:
            raise ImageError(f"the entry {entry} of the layer: {error}") from None
        except OSError as error:
            raise UnavailableError(f"cannot unpack {entry}: {_reason(error, root)}") from None
    work.finish()
    return work.left_out


class _Unpacking:
    def __init__(self, root: bytes, lowers: Sequence[bytes], take: Callable[[int], None]) -> None:
        self._take = take
        self.left_out: Counter[LeftOut] = Counter()
        self._root = root
        self._lowers = lowers
        self._trees = (root, *lowers)
        self._copied: set[Parts] = set()  # of lower layers; no entry of this one
        self._times: dict[Parts, int] = {}  # of directories, which change while they are filled
        self._ready: dict[Parts, Parts] = {}  # parents by name: where they are, made
        self._opaque: set[Parts] = set()
        self._whiteouts: set[Parts] = set()
        self._take_root()

    def add(self, entry: TarEntry, tar: Tar) -> None:
        parts = split(entry.name)
        if not parts:
            if entry.kind != tar_reader.DIRECTORY:
                raise ImageError("the image's root is not a directory")
            self._attributes((), entry)
            return
        *above, name = parts
        if any(part.startswith(_AUFS) and part != _OPAQUE_MARK for part in parts):
            return
        if any(part.startswith(_WHITEOUT) for part in above):
            raise ImageError("it lies below a whiteout")
        if name == _OPAQUE_MARK:
            self._make_opaque(tuple(above))
        elif name.startswith(_WHITEOUT):
            self._delete(tuple(above), name.removeprefix(_WHITEOUT))
        else:
            self._place((*self._parent(tuple(above)), name), entry, tar)

    def finish(self) -> None:
        """Do what can be known only when all is there."""
        if () in self._opaque:
            self._hide_root()
        for parts in self._whiteouts:
            # Below an opaque directory nothing is to be hidden: overlayfs would show such a whiteout as a device.
            if any(parts[:depth] in self._opaque for depth in range(1, len(parts))):
                os.unlink(self._path(parts))
        for parts, time in self._times.items():
            self._set_time(self._path(parts), time)

    # Deletions

    def _make_opaque(self, above: Parts) -> None:
        parts = self._parent(above)
        self._hide(parts)

    def _hide(self, parts: Parts) -> None:
        """Hide what lower layers have in this directory, which is in this one."""
        self._opaque.add(parts)
        below = find_visible(self._lowers, parts)
        if below and below.is_directory:
            os.setxattr(self._path(parts), OPAQUE, b"y")

    def _hide_root(self) -> None:
        """overlayfs merges the roots of layers in any case, so all that is below is deleted by name."""
        for parts in sorted({(name,) for tree in self._lowers for name in os.listdir(tree)}):
            own = self._own(parts)
            if own and own.is_directory:
                self._hide(parts)
            elif own is None and find_visible(self._lowers, parts):
                self._make_whiteout(parts)
        if OPAQUE in os.listxattr(self._root):
            os.removexattr(self._root, OPAQUE)

    def _delete(self, above: Parts, name: bytes) -> None:
        if name in (b"", b".", b".."):
            raise ImageError("it deletes what has no name")
        parts = (*resolve(self._trees, above), name)
        path = self._path(parts)
        own = self._own(parts)
        if own and not is_whiteout(own.status):
            if own.is_directory:
                self._hide(parts)
                return
            if parts not in self._copied:  # an entry of this same layer: a deletion is for those below
                return
            os.unlink(path)
        if find_visible(self._lowers, parts) and not (own and is_whiteout(own.status)):
            self._parent(above)
            self._make_whiteout(parts)

    def _make_whiteout(self, parts: Parts) -> None:
        path = self._path(parts)
        os.mknod(path, stat.S_IFCHR, 0)
        os.utime(path, ns=(0, 0))
        self._whiteouts.add(parts)

    # Entries

    def _place(self, parts: Parts, entry: TarEntry, tar: Tar) -> None:
        path = self._path(parts)
        if entry.kind == tar_reader.HARD_LINK:
            self._link(parts, entry)
            return
        there = self._own(parts)
        hidden = there is not None and is_whiteout(there.status)
        if there and not (there.is_directory and entry.kind == tar_reader.DIRECTORY):
            self._remove(parts, there)
            there = None
        if entry.kind == tar_reader.DIRECTORY:
            if there is None:
                os.mkdir(path, 0o700)
            if hidden:
                self._hide(parts)
        elif entry.kind == tar_reader.FILE:
            self._write(path, entry, tar)
        elif entry.kind == tar_reader.SYMLINK:
            if not entry.link:
                raise ImageError("a symbolic link without a target")
            os.symlink(entry.link, path)
        else:
            device = os.makedev(*entry.device)
            if entry.kind == tar_reader.CHARACTER and device == 0:
                raise ImageError("a character device 0:0, which overlayfs would take for a deletion")
            os.mknod(path, _NODES[entry.kind] | 0o600, device)
        self._attributes(parts, entry)

    def _write(self, path: bytes, entry: TarEntry, tar: Tar) -> None:
        if entry.size > _SMALL:
            room = os.statvfs(self._root)
            if entry.size > room.f_bavail * room.f_frsize:
                raise ImageError(
                    f"it has {entry.size} bytes, for which {os.fsdecode(self._root)} has no room (set TMPDIR)"
                )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        holes = entry.size
        try:
            for offset, piece in tar.data():
                holes -= len(piece)
                written = 0
                while written < len(piece):
                    written += os.pwrite(descriptor, piece[written:], offset + written)
            self._take(holes)
            os.ftruncate(descriptor, entry.size)
        finally:
            os.close(descriptor)

    def _link(self, parts: Parts, entry: TarEntry) -> None:
        *above, name = split(entry.link) or (b"",)
        target = (*resolve(self._trees, tuple(above)), name)
        found = find_visible(self._trees, target) if name else None
        if found is None:
            raise ImageError(f"a hard link to {show(entry.link)}, which is not there")
        if found.is_directory:
            raise ImageError(f"a hard link to the directory {show(entry.link)}")
        if target == parts:
            return
        if self._own(target) is None:
            self._copy_up(target, found)
        there = self._own(parts)
        if there:
            self._remove(parts, there)
        os.link(self._path(target), self._path(parts), follow_symlinks=False)

    def _remove(self, parts: Parts, there: ViewEntry) -> None:
        """Make place for another entry of this layer with the same name."""
        if there.is_directory or there.is_link:
            self._ready.clear()  # nothing else is on the way to a name
        for gone in _tree(parts, there):
            self._times.pop(gone, None)
            for known in (self._copied, self._opaque, self._whiteouts):
                known.discard(gone)
        if there.is_directory:
            shutil.rmtree(there.path)
        else:
            os.unlink(there.path)

    # What is taken from below

    def _parent(self, above: Parts) -> Parts:
        """Where a directory is by this name, made in this layer if need be."""
        known = self._ready.get(above)
        if known is None:
            known = resolve(self._trees, above)
            for depth in range(1, len(known) + 1):
                self._make(known[:depth])
            self._ready[above] = known
        return known

    def _make(self, parts: Parts) -> None:
        own = self._own(parts)
        if own and own.is_directory:
            return
        below = None if own else find_visible(self._lowers, parts)
        if own:  # a whiteout: this directory is a new one
            self._remove(parts, own)
        os.mkdir(self._path(parts), 0o755)
        self._copied.add(parts)
        if below and self._visible(parts):
            self._inherit(parts, below)
        else:
            self._plain(parts)
        if own:
            self._hide(parts)

    def _visible(self, parts: Parts) -> bool:
        return not any(parts[:depth] in self._opaque for depth in range(len(parts)))

    def _copy_up(self, parts: Parts, found: ViewEntry) -> None:
        self._parent(parts[:-1])
        path, mode = self._path(parts), found.status.st_mode
        if stat.S_ISREG(mode):
            shutil.copyfile(found.path, path)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(found.path), path)
        else:
            os.mknod(path, stat.S_IFMT(mode) | 0o600, found.status.st_rdev)
        self._copied.add(parts)
        self._inherit(parts, found)

    def _take_root(self) -> None:
        if self._lowers:
            self._inherit((), ViewEntry(self._lowers[0], os.lstat(self._lowers[0])))
        else:
            self._plain(())

    def _plain(self, parts: Parts) -> None:
        """Make a directory of which the image says nothing."""
        os.chmod(self._path(parts), 0o755)  # noqa: S103 - the user that runs in the image has to read it
        self._times[parts] = 0

    def _inherit(self, parts: Parts, found: ViewEntry) -> None:
        status = found.status
        names = os.listxattr(found.path, follow_symlinks=False)
        xattrs = {os.fsencode(name): os.getxattr(found.path, name, follow_symlinks=False) for name in names}
        self._apply(parts, status.st_uid, status.st_gid, status.st_mode, xattrs, status.st_mtime_ns)

    def _attributes(self, parts: Parts, entry: TarEntry) -> None:
        self._copied.discard(parts)
        path = self._path(parts)
        for name in os.listxattr(path, follow_symlinks=False):  # of a directory that comes again
            if os.fsencode(name) not in entry.xattrs and name != OPAQUE:
                os.removexattr(path, name, follow_symlinks=False)
        self._apply(parts, entry.uid, entry.gid, entry.mode, entry.xattrs, entry.mtime)

    def _apply(self, parts: Parts, uid: int, gid: int, mode: int, xattrs: dict[bytes, bytes], time: int) -> None:
        path = self._path(parts)
        os.chown(path, uid, gid, follow_symlinks=False)
        kind = stat.S_IFMT(os.lstat(path).st_mode)
        if kind != stat.S_IFLNK:
            os.chmod(path, stat.S_IMODE(mode))  # after chown, which takes setuid away
        for name in sorted(xattrs):  # in one order: mkfs.erofs stores them as they are listed
            if name.startswith(_OVERLAY) or name == _LABEL:
                continue
            if can_store(name, kind):
                os.setxattr(path, name, xattrs[name], follow_symlinks=False)
            else:
                self.left_out[LeftOut(name.decode("utf-8", "backslashreplace"), _KINDS[kind])] += 1
        time = min(max(time, MTIME_MIN), MTIME_MAX)
        if kind == stat.S_IFDIR:
            self._times[parts] = time
        else:
            self._set_time(path, time)

    def _set_time(self, path: bytes, time: int) -> None:
        """Raise UnavailableError where the filesystem would keep another time, and the image have another digest."""
        os.utime(path, ns=(time, time), follow_symlinks=False)
        if time not in _COMMON_TIMES and os.lstat(path).st_mtime_ns != time:
            raise UnavailableError(
                f"the filesystem of {os.fsdecode(self._root)} cannot keep a time of {time // 10**9} s since 1970: "
                "set TMPDIR to a directory on another one, such as ext4, XFS or tmpfs"
            )

    def _own(self, parts: Parts) -> ViewEntry | None:
        status = lookup(self._path(parts))
        return ViewEntry(self._path(parts), status) if status else None

    def _path(self, parts: Parts) -> bytes:
        return b"/".join((self._root, *parts))


def can_store(name: bytes, kind: int) -> bool:
    """Tell whether Linux lets a file of this kind (S_IFMT) have an extended attribute of this name: xattr(7)."""
    if name.startswith(b"user."):
        return kind in (stat.S_IFREG, stat.S_IFDIR)
    if name == b"system.posix_acl_access":
        return kind != stat.S_IFLNK
    if name == b"system.posix_acl_default":
        return kind == stat.S_IFDIR
    return name.startswith((b"trusted.", b"security."))


def _tree(parts: Parts, found: ViewEntry) -> Iterator[Parts]:
    """Give the names of what was found and of all that is in it."""
    pending = [(parts, found.path)] if found.is_directory else []
    yield parts
    while pending:
        above, path = pending.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                yield (*above, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(((*above, entry.name), entry.path))


def _reason(error: OSError, root: bytes) -> str:
    import errno

    where = os.fsdecode(root)
    if error.errno in (errno.ENOTSUP, errno.EPERM) and os.geteuid() == 0:
        return (
            f"the filesystem of {where} does not take it ({error.strerror}): set TMPDIR to a directory on another one"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where} has no room (set TMPDIR)"
    return error.strerror or str(error)
