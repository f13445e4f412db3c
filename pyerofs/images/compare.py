"""What has changed between two images: `pyerofs diff`."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .image_files import ImageFiles, Stat

_PIECE = 1 << 20  # bytes


def compare(one: ImageFiles, other: ImageFiles, top: str = "/") -> Iterator[str]:
    """Yield a line for each file that only one of them has, or that differs: D, A or M, its path, and how.

    What lies in a layer that both have is not read. Raises OSError where none has `top`.
    """
    there = [image.exists(top) for image in (one, other)]
    if not all(there):
        (one if not there[0] else other).stat(top)  # which raises
    yield from _compare(one, other, top, one.lstat(top), other.lstat(top))


def _compare(one: ImageFiles, other: ImageFiles, path: str, old: Stat, new: Stat) -> Iterator[str]:
    how = list(_differences(one, other, path, old, new))
    if how:
        yield f"M {path} ({', '.join(how)})"
    both = [stat.S_ISDIR(found.mode) for found in (old, new)]
    before = dict(one.scandir(path)) if both[0] else {}
    after = dict(other.scandir(path)) if both[1] else {}
    for name in sorted({*before, *after}):
        inner = os.path.join(path, name)
        if name not in after:
            yield f"D {inner}"
        elif name not in before:
            yield f"A {inner}"
        else:
            yield from _compare(one, other, inner, before[name], after[name])


def _differences(one: ImageFiles, other: ImageFiles, path: str, old: Stat, new: Stat) -> Iterator[str]:
    if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        yield f"{stat.filemode(old.mode)[0]} -> {stat.filemode(new.mode)[0]}"
        return
    if old.mode != new.mode:
        yield f"mode {stat.S_IMODE(old.mode):04o} -> {stat.S_IMODE(new.mode):04o}"
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield f"owner {old.uid}:{old.gid} -> {new.uid}:{new.gid}"
    if old.rdev != new.rdev:
        yield "device"
    if stat.S_ISLNK(old.mode):
        targets = [image.readlink(path) for image in (one, other)]
        if targets[0] != targets[1]:
            yield f"link {targets[0]} -> {targets[1]}"
    elif stat.S_ISREG(old.mode):
        if old.size != new.size:
            yield f"size {old.size} -> {new.size}"
        elif not _same_content(one, other, path, old.size):
            yield "content"
    if one.xattrs(path, follow_symlinks=False) != other.xattrs(path, follow_symlinks=False):
        yield "xattrs"


def _same_content(one: ImageFiles, other: ImageFiles, path: str, size: int) -> bool:
    if one.identity(path) == other.identity(path):
        return True
    with one.open_raw(path) as first, other.open_raw(path) as second:
        return all(first.pread(_PIECE, at) == second.pread(_PIECE, at) for at in range(0, size, _PIECE))
