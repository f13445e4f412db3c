"""What layers that lie on one another show, as overlayfs would: names, whiteouts, opaque directories.

No other process changes the trees, and no symbolic link in them is ever followed. Names are bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import ImageError

OPAQUE = "trusted.overlay.opaque"
DEPTH_MAX = 400  # directories: deeper trees are made to exhaust recursive code
_LINKS_MAX = 40  # as in the kernel

Parts = tuple[bytes, ...]


class ViewEntry(NamedTuple):
    path: bytes
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.status.st_mode)


def split(name: bytes) -> Parts:
    """Clean a name of an archive by its text alone, as container engines do: links have no say in its `..`.

    A slash in front is the image's root. Raises ImageError for a name that leads out of the image.
    """
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise ImageError("it leads out of the image")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    _check_depth(len(parts))
    return tuple(parts)


def _check_depth(depth: int) -> None:
    if depth > DEPTH_MAX:
        raise ImageError(f"it lies {depth} directories deep; at most {DEPTH_MAX} are taken")


def lookup(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: bytes) -> bool:
    try:
        return os.getxattr(path, OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False


def find_visible(trees: Sequence[bytes], parts: Parts) -> ViewEntry | None:
    """Return what the trees, the uppermost first, show under this name. No link on the way is followed."""
    for tree in trees:
        path, hides = tree, is_opaque(tree)
        status = os.lstat(tree)
        for number, part in enumerate(parts, 1):
            path += b"/" + part
            found = lookup(path)
            if found is None:
                break
            if is_whiteout(found):
                return None
            status = found
            if number < len(parts) and not stat.S_ISDIR(status.st_mode):
                return None
            hides = hides or (number < len(parts) and is_opaque(path))
        else:
            return ViewEntry(path, status)
        if hides:
            return None
    return None


def resolve(trees: Sequence[bytes], parts: Parts) -> Parts:
    """Return the name without symbolic links on the way, which are followed within the image.

    What is not there stays.

    As in the kernel, `..` at the image's root is the root. Raises ImageError for a file where a directory has to be.
    """
    done: Parts = ()
    pending = list(parts)
    links = 0
    while pending:
        part = pending.pop(0)
        if part == b"..":
            done = done[:-1]
            continue
        found = find_visible(trees, (*done, part))
        if found and found.is_link:
            links += 1
            if links > _LINKS_MAX:
                raise ImageError("there are too many symbolic links in its path")
            target = os.readlink(found.path)
            done = () if target.startswith(b"/") else done
            pending = [part for part in target.split(b"/") if part not in (b"", b".")] + pending
            continue
        if found and not found.is_directory:
            raise ImageError("there is a file where it needs a directory")
        done = (*done, part)
        _check_depth(len(done))
    return done
