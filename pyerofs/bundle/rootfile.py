"""Reading files of an image where it is mounted: its symbolic links stay inside of it."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack

LINKS_MAX = 40  # as path_resolution(7)
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def read_in_root(root: str, path: str, limit: int) -> bytes:
    """Return at most `limit` bytes of the regular file that `path` is for a process whose root is `root`.

    Raises OSError.
    """
    with ExitStack() as held:

        def look(name: str, where: int | None) -> int:
            fd = os.open(name, _LOOK, dir_fd=where)
            held.callback(os.close, fd)
            return fd

        way = [look(root, None)]
        left = path.split("/")[::-1]
        links = 0
        while left:
            name = left.pop()
            if name == "..":
                del way[max(1, len(way) - 1) :]
            elif name not in ("", "."):
                fd = look(name, way[-1])
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    way.append(fd)
                    continue
                links += 1
                if links > LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink("", dir_fd=fd)
                if target.startswith("/"):
                    del way[1:]
                left += target.split("/")[::-1]
        if not stat.S_ISREG(os.fstat(way[-1]).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        with open(f"/proc/self/fd/{way[-1]}", "rb") as file:
            return file.read(limit)
