"""Contents that no file of a tree has any more, left out of a device that is about to be written. Pure values."""

from __future__ import annotations

import stat
from typing import NamedTuple

from .data_map import BLOCK, DataMap
from .tree import Tree


class Stretch(NamedTuple):
    """Bytes of a device that are kept: `length` from `start` on. Both are whole blocks."""

    start: int
    length: int


def keep_used(tree: Tree, root: int, contents: DataMap, device: int) -> list[Stretch]:
    """Move what the tree has of a device together, and return where that was, in the order in which it lies now."""
    pieces = {
        (piece.start, piece.blocks * BLOCK)
        for number, size in _used(tree, root).items()
        if contents.devices[number] == device and number not in contents.inline
        for piece in contents.pieces(number, size)
    }
    stretches: list[Stretch] = []
    for start, length in sorted(pieces):
        last = stretches[-1] if stretches else Stretch(0, 0)
        if stretches and start <= last.start + last.length:
            stretches[-1] = Stretch(last.start, max(last.length, start + length - last.start))
        else:
            stretches.append(Stretch(start, length))
    contents.move(device, stretches)
    return stretches


def _used(tree: Tree, root: int) -> dict[int, int]:
    """Return the contents of all files below a directory, each with the size of the largest file that has it."""
    found: dict[int, int] = {}
    pending = [root]
    while pending:
        for row in tree.children[pending.pop()].values():
            kind = stat.S_IFMT(tree.mode[row])
            if kind == stat.S_IFDIR:
                pending.append(row)
            elif kind == stat.S_IFREG:
                number = tree.value[row]
                found[number] = max(found.get(number, 0), tree.size[row])
    found.pop(0, None)  # nothing but zeros
    return found
