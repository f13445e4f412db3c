"""Files of an image as files of this machine: `pyerofs cp`."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from .image_files import ImageFiles, Stat

AT_ONCE = 8  # files whose content comes at the same time: each small one is a round trip to the registry
_PIECE = 1 << 20  # bytes


class CopyOut:
    """Copies files of an image. `archive`: directories too, and whatever of a file this user may give it.

    Nothing that is there already is followed or written through, but for what the caller names as the destination
    itself. For one thread; raises UsageError for what is not to be copied, UnavailableError for what cannot be written,
    OSError for what the image lacks.
    """

    def __init__(self, image: ImageFiles, *, archive: bool) -> None:
        self._image = image
        self._archive = archive
        self._root = os.geteuid() == 0
        self._pool = ThreadPoolExecutor(AT_ONCE, "pyerofs-copy")
        self._running: list[Future[None]] = []
        self._late: list[tuple[str, str, Stat]] = []  # directories, whose times would change with what comes into them
        self._linked: dict[int, str] = {}
        self._left_out: dict[str, int] = {}

    def copy(self, path: str, dest: str) -> None:
        """Copy a file, or with `archive` a directory with all that is in it, to the path `dest`."""
        found = self._image.lstat(path) if self._archive else self._image.stat(path)
        if stat.S_ISDIR(found.mode) and not self._archive:
            raise UsageError(f"{path} is a directory: `cp -a` copies it")
        if not self._archive and not stat.S_ISREG(found.mode):
            raise UsageError(f"{path} is no regular file: `cp -a` copies it")
        self._copy(path, dest, found)

    def finish(self) -> list[str]:
        """Wait for everything; return a line for each kind of thing that was left out."""
        try:
            for future in self._running:
                future.result()
            for path, dest, found in reversed(self._late):
                with _writing(dest):
                    self._dress(path, dest, found)
        finally:
            self._pool.shutdown(cancel_futures=True)
        return [f"left out, for want of permission: {count} {what}" for what, count in self._left_out.items()]

    def _copy(self, path: str, dest: str, found: Stat) -> None:
        kind = stat.S_IFMT(found.mode)
        if kind == stat.S_IFDIR:
            with _writing(dest):
                _make_directory(dest)
            self._late.append((path, dest, found))
            for name, inner in self._image.scandir(path):
                self._copy(os.path.join(path, name), os.path.join(dest, name), inner)
            return
        if self._archive and found.nlink > 1:
            first = self._linked.setdefault(found.ino, dest)
            if first != dest:
                # A link to a file that is being written is one to what it will be.
                with _writing(dest):
                    os.link(first, dest, follow_symlinks=False)
                return
        if kind == stat.S_IFREG:
            with _writing(dest):
                fd = self._create(dest)
            self._running.append(self._pool.submit(self._fill, path, dest, found, fd))
        else:
            with _writing(dest):
                self._make_special(path, dest, found, kind)

    def _create(self, dest: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(dest, flags | (os.O_EXCL if self._archive else os.O_TRUNC), 0o600 if self._archive else 0o666)

    def _fill(self, path: str, dest: str, found: Stat, fd: int) -> None:
        try:
            with self._image.open_raw(path) as file:
                for at in range(0, file.size, _PIECE):
                    piece = file.pread(_PIECE, at)
                    with _writing(dest):
                        _write(fd, piece, at)
            if self._archive:
                with _writing(dest):
                    self._dress(path, dest, found)
        finally:
            os.close(fd)

    def _make_special(self, path: str, dest: str, found: Stat, kind: int) -> None:
        if kind == stat.S_IFLNK:
            os.symlink(self._image.readlink(path), dest)
        elif kind == stat.S_IFIFO or self._root:
            os.mknod(dest, kind | 0o600, found.rdev)
        else:
            self._miss("devices" if kind != stat.S_IFSOCK else "sockets")
            return
        self._dress(path, dest, found)

    def _dress(self, path: str, dest: str, found: Stat) -> None:
        """Give what was made owner, xattrs, mode and time, as far as this user may."""
        if self._root:
            os.chown(dest, found.uid, found.gid, follow_symlinks=False)
        for name, value in self._image.xattrs(path, follow_symlinks=False).items():
            try:
                os.setxattr(dest, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EACCES):
                    raise
                self._miss(f"xattrs {name}")
        if not stat.S_ISLNK(found.mode):
            os.chmod(dest, stat.S_IMODE(found.mode))
        os.utime(dest, ns=(found.mtime_ns, found.mtime_ns), follow_symlinks=False)

    def _miss(self, what: str) -> None:
        self._left_out[what] = self._left_out.get(what, 0) + 1


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count


def _make_directory(dest: str) -> None:
    try:
        os.mkdir(dest, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(dest).st_mode):
            raise


@contextlib.contextmanager
def _writing(dest: str) -> Iterator[None]:
    """Tell an error of the copy from one of the image."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"{dest}: {error.strerror}") from None
