"""The xattrs of an image's files: what several files have is stored once, in front of the inodes."""

from __future__ import annotations

from collections import Counter

from ..errors import ImageError
from . import on_disk
from .tree import Tree


class XattrTable:
    """`shared`: the bytes of the shared area; `bodies`: what stands behind an inode, by its set's number."""

    def __init__(self, tree: Tree, uses: Counter[int]) -> None:
        """Choose what is shared by `uses`, how many files have each of the tree's sets.

        Raises ImageError for what cannot be stored.
        """
        counted: Counter[tuple[bytes, bytes]] = Counter()
        used = sorted(number for number in uses if number)
        for number in used:
            for xattr in tree.xattr_sets[number]:
                counted[xattr] += uses[number]
        self.shared = bytearray()
        places: dict[tuple[bytes, bytes], int] = {}
        for xattr in sorted(xattr for xattr, count in counted.items() if count > 1):
            places[xattr] = len(self.shared) // 4
            self.shared += on_disk.xattr_entry(*xattr)
        self.bodies: dict[int, bytes] = {0: b""}
        for number in used:
            self.bodies[number] = _body(tree.xattr_sets[number], places)


def _body(xattrs: tuple[tuple[bytes, bytes], ...], places: dict[tuple[bytes, bytes], int]) -> bytes:
    shared = [places[xattr] for xattr in xattrs if xattr in places][: on_disk.XATTR_SHARED_MAX]
    taken = set(shared)
    entries = [on_disk.xattr_entry(*xattr) for xattr in xattrs if places.get(xattr) not in taken]
    body = on_disk.XATTR_HEADER.pack(0, len(shared)) + b"".join(place.to_bytes(4, "little") for place in shared)
    body += b"".join(entries)
    if len(body) > on_disk.XATTR_BODY_MAX:
        raise ImageError(f"a file has xattrs of {len(body)} bytes: at most {on_disk.XATTR_BODY_MAX} fit")
    return body
