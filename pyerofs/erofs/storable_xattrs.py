"""Which xattrs of an archive's entry are taken over, and what becomes of its mode with them."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..tar import reader
from ..tar.reader import TarEntry
from . import acl, on_disk
from .tree import Xattrs

# Not taken over: overlayfs would obey the first, and labels are given by the system that runs the image.
_OVERLAY, _LABEL = b"trusted.overlay.", b"security.selinux"
_ACCESS, _DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
_NAMES = {
    reader.FILE: "files",
    reader.DIRECTORY: "directories",
    reader.SYMLINK: "symbolic links",
    reader.CHARACTER: "devices",
    reader.BLOCK: "devices",
    reader.FIFO: "fifos",
}


class LeftOut(NamedTuple):
    """An xattr that could not be stored, and what kind of files had it."""

    name: str
    kind: str


def taken_xattrs(entry: TarEntry) -> tuple[int, Xattrs, list[LeftOut]]:
    """Return the entry's mode, its xattrs, and what cannot be stored of them, by name and kind of file.

    An ACL changes the mode, as setxattr(2) does. Raises ImageError for what is beyond the limits of Linux.
    """
    mode = entry.mode
    found, left_out = [], []
    for name in sorted(entry.xattrs):
        if name.startswith(_OVERLAY) or name == _LABEL:
            continue
        value = entry.xattrs[name]
        permissions = acl.mode_of(value) if name in (_ACCESS, _DEFAULT) else (0, False)
        if permissions is None or not _can_have(entry.kind, name):
            left_out.append(LeftOut(os.fsdecode(name), _NAMES.get(entry.kind, "files")))
            continue
        if name == _ACCESS:
            mode = mode & ~0o777 | permissions[0]
            if permissions[1]:
                continue
        on_disk.xattr_entry(name, value)  # refuses what is too long
        found.append((name, value))
    return mode, tuple(found), left_out


def _can_have(kind: bytes, name: bytes) -> bool:
    """Whether a file of this kind can have the xattr, by the rules of Linux and those of EROFS."""
    if name.startswith(b"user."):
        return kind in (reader.FILE, reader.DIRECTORY) and on_disk.xattr_prefix(name) > 0
    if name == _DEFAULT:
        return kind == reader.DIRECTORY
    if name == _ACCESS:
        return kind != reader.SYMLINK
    return on_disk.xattr_prefix(name) > 0
