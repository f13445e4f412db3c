"""POSIX ACLs as xattrs hold them (the kernel's posix_acl_xattr.h): what setxattr(2) would make of them."""

from __future__ import annotations

import struct

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF


def mode_of(value: bytes) -> tuple[int, bool] | None:
    """Return the permission bits that the ACL stands for, and whether it says nothing else, so that none is stored.

    None: it is no valid ACL, which the kernel would neither take nor show.
    """
    if value[:4] != _VERSION or (len(value) - 4) % _ENTRY.size:
        return None
    entries = list(_ENTRY.iter_unpack(value[4:]))
    tags = [tag for tag, _, _ in entries]
    named = [tag for tag in tags if tag in (_USER, _GROUP)]
    if tags != sorted(tags) or any(permissions > 7 for _, permissions, _ in entries):
        return None
    once = [tag for tag in tags if tag not in named]
    if once not in ([_USER_OBJ, _GROUP_OBJ, _OTHER], [_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER]):
        return None
    if (named and _MASK not in once) or any(who == _NOBODY for tag, _, who in entries if tag in named):
        return None
    permissions = {tag: of for tag, of, _ in entries if tag not in named}
    group = permissions.get(_MASK, permissions[_GROUP_OBJ])
    return permissions[_USER_OBJ] << 6 | group << 3 | permissions[_OTHER], len(once) == 3
