"""The layers of an image as the one tree that their mount shows: overlayfs's rules, without overlayfs.

Whiteouts and opaque directories hide, directories are merged, and a file that only names its content has it from a
layer that lends its own. Any thread.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ..errors import ImageError
from .reader import ErofsReader, Inode

_DIRECTORY, _REGULAR, _CHARACTER = 2, 1, 3  # file types of names
_OVERLAY = b"trusted.overlay."
_Spot = tuple[int, int]  # a layer's number, and an inode's there


class TreeEntry(NamedTuple):
    """A file of the tree. `spots`: where it is, the uppermost layer first; several for a merged directory."""

    spots: tuple[_Spot, ...]
    inode: Inode

    @property
    def layer(self) -> int:
        return self.spots[0][0]

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.inode.mode)


class StackedTree:
    """`lowers`: the layers with names, base first; `lenders`: those that only lend their files, base first."""

    def __init__(self, lowers: Sequence[ErofsReader], lenders: Sequence[ErofsReader] = ()) -> None:
        self.layers = [*lowers, *lenders]
        self._lenders = range(len(lowers), len(self.layers))
        self._stacked = len(self.layers) > 1
        spots = tuple((number, lowers[number].root) for number in reversed(range(len(lowers))))
        self.root = self._entry(self._merge([[spot] for spot in spots]))
        self.names = lru_cache(256)(self._names)

    def _entry(self, spots: tuple[_Spot, ...]) -> TreeEntry:
        layer, nid = spots[0]
        return TreeEntry(spots, self.layers[layer].inode(nid))

    def _names(self, directory: TreeEntry) -> dict[bytes, tuple[_Spot, ...]]:
        """Return what a directory holds, in order."""
        found: dict[bytes, list[list[_Spot]]] = {}
        kinds: dict[bytes, int] = {}
        for layer, nid in directory.spots:
            reader = self.layers[layer]
            inode = reader.inode(nid)
            xattrs = reader.xattrs(inode) if self._stacked else {}
            if _OVERLAY + b"redirect" in xattrs:
                raise ImageError("the image has a renamed directory (an overlayfs redirect): `pyerofs mount` shows it")
            marked = xattrs.get(_OVERLAY + b"opaque") == b"x"
            for name, (of, kind) in reader.names(inode).items():
                whiteout = self._stacked and self._is_whiteout(reader, of, kind, marked)
                if name not in found:
                    found[name], kinds[name] = ([] if whiteout else [[(layer, of)]]), kind
                elif found[name] and kinds[name] == _DIRECTORY:
                    found[name].append([] if whiteout or kind != _DIRECTORY else [(layer, of)])
        return {name: self._merge(spots) for name, spots in sorted(found.items()) if spots}

    def _is_whiteout(self, reader: ErofsReader, nid: int, kind: int, marked: bool) -> bool:
        if kind == _CHARACTER:
            return reader.inode(nid).rdev == (0, 0)
        return (
            marked and kind == _REGULAR and _OVERLAY + b"whiteout" in reader.xattrs(reader.inode(nid))
        )  # as since Linux 6.7

    def _merge(self, each: Sequence[Sequence[_Spot]]) -> tuple[_Spot, ...]:
        """Return what of the same name is seen: down to what is no directory, or hides what lies below."""
        seen: list[_Spot] = []
        for spots in each:
            if not spots:
                break
            seen += spots
            if len(each) > len(seen) and self._hides(*spots[0]):
                break
        return tuple(seen)

    def _hides(self, layer: int, nid: int) -> bool:
        reader = self.layers[layer]
        inode = reader.inode(nid)
        return not stat.S_ISDIR(inode.mode) or reader.xattrs(inode).get(_OVERLAY + b"opaque") == b"y"

    def child(self, directory: TreeEntry, name: bytes) -> TreeEntry | None:
        """Return what has this name in the directory."""
        spots = self.names(directory).get(name)
        return self._entry(spots) if spots else None

    def xattrs(self, entry: TreeEntry) -> dict[bytes, bytes]:
        """Return the extended attributes that a mount shows."""
        found = self.layers[entry.layer].xattrs(entry.inode)
        if self._stacked:
            found = {name: value for name, value in found.items() if not name.startswith(_OVERLAY)}
        return found

    def link(self, entry: TreeEntry) -> bytes:
        """Return the target of a symbolic link."""
        return self.layers[entry.layer].content(entry.inode)

    def content(self, entry: TreeEntry, path: bytes) -> tuple[int, Inode]:
        """Return where the content of a regular file is: a layer and an inode. `path` of it, absolute."""
        if self._lenders:
            xattrs = self.layers[entry.layer].xattrs(entry.inode)
            if _OVERLAY + b"metacopy" in xattrs:
                return self._lent(xattrs.get(_OVERLAY + b"redirect", path))
        return entry.layer, entry.inode

    def _lent(self, path: bytes) -> tuple[int, Inode]:
        for number in reversed(self._lenders):
            reader = self.layers[number]
            inode = reader.inode(reader.root)
            for name in path.split(b"/"):
                if name:
                    found = reader.names(inode).get(name) if stat.S_ISDIR(inode.mode) else None
                    if found is None:
                        break
                    inode = reader.inode(found[0])
            else:
                return number, inode
        raise ImageError(f"no layer has the content of {path.decode(errors='replace')}")
