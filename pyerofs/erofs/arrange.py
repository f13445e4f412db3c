"""The data of an image in the order in which a start reads it: what a trace tells of first, then the rest as it was.

Only where contents lie changes, not what they are. A file of which a part is read becomes one in chunks, as sparse
files are, and so stays what any kernel reads.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from .data_map import BLOCK, DataMap, Extent
from .trace import Seen, Trace
from .tree import Tree

_UNIT = 4  # blocks of a file that move together: finer ones make maps that are larger than what they save
_MOST = 0.9  # of a file that is read: then all of it is


class Arrangement(NamedTuple):
    """The data of a device in another order.

    `contents`: as they lie then; `parts`: where the bytes were, as offsets and lengths, in their new order; `hot`: how
    many bytes of the beginning the trace tells of.
    """

    contents: DataMap
    parts: tuple[tuple[int, int], ...]
    hot: int


def arrange(
    tree: Tree,
    root: int,
    contents: DataMap,
    device: int,
    size: int,
    trace: Trace,
    wanted: Callable[[bytes], bool] = lambda path: True,
) -> Arrangement:
    """Arrange the data of one device, of `size` bytes, for the tree below the directory `root`.

    `wanted` says of a path whether it counts. What the trace tells of other files, or of what lies behind a file's end,
    is ignored.
    """
    hot: list[tuple[int, int]] = []
    seen = Seen()
    for path, reads in trace.by_file().items():
        row = _find(tree, root, path) if wanted(path) else None
        if row is None:
            continue
        content, blocks = tree.value[row], -(-tree.size[row] // BLOCK)
        if contents.devices[content] != device or content in contents.inline:
            continue
        pieces = contents.pieces(content, tree.size[row])
        for first, end in _rounded(reads, blocks):
            for piece in pieces:
                low, high = max(first, piece.first), min(end, piece.first + piece.blocks)
                if low < high:
                    start = piece.start // BLOCK + low - piece.first
                    hot += seen.add(start, start + high - low)
    total = -(-size // BLOCK)
    hot = [(first, min(end, total)) for first, end in hot if first < total]
    cold, at = [], 0
    for first, end in sorted(hot):
        if at < first:
            cold.append((at, first))
        at = end
    if at < total:
        cold.append((at, total))
    order = _joined([*hot, *cold])
    moved = _moved(tree, contents, device, order)
    parts = tuple((first * BLOCK, min(end * BLOCK, size) - first * BLOCK) for first, end in order)
    return Arrangement(moved, parts, sum(end - first for first, end in hot) * BLOCK)


def _rounded(reads: list[tuple[int, int]], blocks: int) -> list[tuple[int, int]]:
    """Return what of a file of so many blocks is to lie together, in the order of the file.

    Reads of one file at one time come in any order, and it is to be read in one go.
    """
    found: list[tuple[int, int]] = []
    for first, count in sorted(reads):
        low, high = first // _UNIT * _UNIT, min(-(-(first + count) // _UNIT) * _UNIT, blocks)
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        elif low < high:
            found.append((low, high))
    return [(0, blocks)] if sum(end - first for first, end in found) >= _MOST * blocks else found


def _find(tree: Tree, root: int, path: bytes) -> int | None:
    """Return the row of a regular file by its path."""
    row = root
    for name in path.split(b"/"):
        if name:
            names = tree.children.get(row)
            if names is None or name not in names:
                return None
            row = names[name]
    return row if stat.S_ISREG(tree.mode[row]) and tree.size[row] else None


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, end in ranges:
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], end)
        else:
            found.append((first, end))
    return found


def _moved(tree: Tree, contents: DataMap, device: int, order: list[tuple[int, int]]) -> DataMap:
    """Return a data map in which the blocks of the device lie in this order."""
    places, at = [], 0
    for first, end in order:
        places.append((first, end, at))
        at += end - first
    places.sort()
    firsts = [place[0] for place in places]
    sizes: dict[int, int] = {}
    for row, mode in enumerate(tree.mode):
        if stat.S_ISREG(mode) and tree.value[row]:
            sizes[tree.value[row]] = max(tree.size[row], sizes.get(tree.value[row], 0))
    moved = contents.copy()
    for content, size in sizes.items():
        if contents.devices[content] != device or content in contents.inline:
            continue
        pieces = [part for piece in contents.pieces(content, size) for part in _pieces(piece, places, firsts)]
        joined: list[Extent] = []
        for piece in pieces:
            last = joined[-1] if joined else None
            if last and last.first + last.blocks == piece.first and last.start + last.blocks * BLOCK == piece.start:
                joined[-1] = last._replace(blocks=last.blocks + piece.blocks)
            else:
                joined.append(piece)
        moved.place(content, tuple(joined), -(-size // BLOCK))
    return moved


def _pieces(piece: Extent, places: list[tuple[int, int, int]], firsts: list[int]) -> list[Extent]:
    first, block, left = piece.first, piece.start // BLOCK, piece.blocks
    found = []
    while left:
        begin, end, at = places[bisect_right(firsts, block) - 1]
        count = min(left, end - block)
        found.append(Extent(first, count, (at + block - begin) * BLOCK))
        first, block, left = first + count, block + count, left - count
    return found
