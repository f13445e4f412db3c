"""The contents of directories: sorted names with their inodes, in blocks that each stand alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .on_disk import BLOCK, DIRENT

_DOTS = 2 * DIRENT.size + 3  # "." and ".."


def directory_size(names: dict[bytes, int]) -> int:
    """Bytes of a directory with these names, which are sorted, besides "." and ".."."""
    total = _DOTS + DIRENT.size * len(names) + sum(map(len, names))
    if total <= BLOCK:
        return total
    blocks = used = 0
    for name in with_dots(names):
        need = DIRENT.size + len(name)
        if used + need > BLOCK:
            blocks, used = blocks + 1, 0
        used += need
    return blocks * BLOCK + used


def with_dots(names: dict[bytes, int]) -> Iterator[bytes]:
    """All names in order; some, such as "!" and "-", sort before "."."""
    dots = [b".", b".."]
    for name in names:
        while dots and dots[0] < name:
            yield dots.pop(0)
        yield name
    yield from dots


def directory_content(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    """Return the bytes of a directory; `names` are all, sorted. All of its blocks but the last are full ones."""
    blocks = []
    first = used = 0
    for number, name in enumerate(names):
        need = DIRENT.size + len(name)
        if used + need > BLOCK:
            blocks.append(_block(names[first:number], nids[first:number], types[first:number]).ljust(BLOCK, b"\0"))
            first, used = number, 0
        used += need
    blocks.append(_block(names[first:], nids[first:], types[first:]))
    return b"".join(blocks)


def _block(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    at = DIRENT.size * len(names)
    entries = []
    for name, nid, kind in zip(names, nids, types, strict=True):
        entries.append(DIRENT.pack(nid, at, kind, 0))
        at += len(name)
    return b"".join(entries) + b"".join(names)
