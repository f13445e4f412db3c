"""The files of an image as a tar archive: `pyerofs export`."""

from __future__ import annotations

import os
import stat
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import BinaryIO

    from .image_files import ImageFiles, Stat

_BUFFER = 1 << 20  # bytes
_TYPES = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def write_tar(image: ImageFiles, top: str, out: BinaryIO) -> None:
    """Write what is at `top` and below, with names relative to it (to its directory, for a file).

    In the POSIX format, with extended attributes; sockets, which it has no type for, are left out. The same image gives
    the same archive. Raises OSError for what the image lacks, and what `out` raises.
    """
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BUFFER) as tar:
        _TarWriter(image, tar).add(top, "." if image.isdir(top) else os.path.basename(top), image.lstat(top))


class _TarWriter:
    def __init__(self, image: ImageFiles, tar: tarfile.TarFile) -> None:
        self._image, self._tar = image, tar
        self._linked: dict[int, str] = {}

    def add(self, path: str, name: str, found: Stat) -> None:
        kind = _TYPES.get(stat.S_IFMT(found.mode))
        if kind is None:
            return
        info = tarfile.TarInfo(name)
        info.type, info.mode = kind, stat.S_IMODE(found.mode)
        info.uid, info.gid, info.mtime = found.uid, found.gid, found.mtime_ns // 10**9
        info.devmajor, info.devminor = os.major(found.rdev), os.minor(found.rdev)
        headers: dict[str, Any] = {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
            for key, value in self._image.xattrs(path, follow_symlinks=False).items()
        }
        if found.mtime_ns % 10**9:
            headers["mtime"] = f"{found.mtime_ns // 10**9}.{found.mtime_ns % 10**9:09}"
        info.pax_headers = headers
        if kind == tarfile.SYMTYPE:
            info.linkname = self._image.readlink(path)
        if kind != tarfile.DIRTYPE and found.nlink > 1:
            first = self._linked.setdefault(found.ino, name)
            if first != name:
                info.type, info.linkname = tarfile.LNKTYPE, first
                self._tar.addfile(info)
                return
        if kind == tarfile.REGTYPE:
            info.size = found.size
            with self._image.open_raw(path) as file:
                self._tar.addfile(info, file)
            return
        self._tar.addfile(info)
        if kind == tarfile.DIRTYPE:
            for inner, status in self._image.scandir(path):
                self.add(os.path.join(path, inner), os.path.join(name, inner), status)
