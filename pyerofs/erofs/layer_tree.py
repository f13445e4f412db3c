"""Layers applied in order to one tree in memory, and each layer as a tree that stands alone for overlayfs.

OCI image spec, "Image Layer Filesystem Changeset". A layer is applied to a tree of its own first, which sees through to
what is below it: so a deletion is for what lies below, wherever in the archive it stands. Then it is merged into the
tree of all layers so far. Symbolic links on the way to a name are followed within the image, and never lead out of it.

A layer that stands alone is completed from below: with a file of a lower layer that it adds a name to, and with the
attributes of directories that it only passes through. It has a whiteout only where there is something to hide, since
overlayfs shows others as devices.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ..errors import ImageError
from ..tar import reader
from ..tar.reader import TarEntry, show
from . import on_disk
from .paths import Parts, check_depth, split
from .storable_xattrs import LeftOut, taken_xattrs
from .tree import WHITEOUT, Attributes, Tree

OPAQUE = (b"trusted.overlay.opaque", b"y")
_WHITEOUT = b".wh."
_OPAQUE_MARK = b".wh..wh..opq"
_AUFS = b".wh..wh."  # what aufs kept for itself
_LINKS_MAX = 40  # as in the kernel
_NODES = {reader.CHARACTER: stat.S_IFCHR, reader.BLOCK: stat.S_IFBLK, reader.FIFO: stat.S_IFIFO}
NONE = -1  # no row


class _Place(NamedTuple):
    """A directory: its row in the layer's own tree, and what it shows of the layers below; NONE where there is none."""

    own: int
    below: int


class LayerTree:
    """The tree of an image, layer by layer. For one thread.

    `tree`: the table of all rows. `root`: the directory that all layers so far make together, NONE before the first
    is merged. `left_out`: how many xattrs could not be stored, by what they are.
    """

    def __init__(self) -> None:
        self.tree = Tree()
        self.root = NONE
        self.left_out: Counter[LeftOut] = Counter()

    def begin(self, take: Callable[[int, int], int] | None = None) -> AppliedLayer:
        """Begin the next layer; the one before it has been merged.

        `take` gives the number of the content of a file that the layer takes from a lower one, by its number there and
        its size in bytes: for layers that stand alone, which need it on their own device. None: it stays the same.
        """
        return AppliedLayer(self, take or _same)


def _same(content: int, _: int) -> int:
    return content


class AppliedLayer:
    """One layer on those below. First all entries, then, if it is to stand alone, `standalone`, and `merge` at last.

    `root`: the directory of its own tree.
    """

    def __init__(self, stack: LayerTree, take: Callable[[int, int], int]) -> None:
        self._stack, self._tree, self._take = stack, stack.tree, take
        tree, lower = self._tree, stack.root
        self.root = tree.add_directory(Attributes()) if lower < 0 else tree.copy(lower, 0)
        self._below = {self.root: lower}  # by directories of this layer
        self._opaque: set[int] = set()  # directories of this layer that hide one
        self._copied: set[tuple[int, bytes]] = set()  # names of files taken from below; no entries of this layer
        self._origins: dict[int, int] = {}  # rows of such files, and what they are there
        self._ready: dict[bytes, tuple[_Place, Parts]] = {}  # parents that are made, by how an archive calls them
        self._marked: dict[int, int] = {}  # directories with OPAQUE, and their xattrs without it
        self._hides_root = False

    def add(self, entry: TarEntry, content: int = 0) -> None:
        """Apply an entry; `content`: of a file, its number in the DataMap. Raises ImageError that names the entry."""
        try:
            self._add(entry, content)
        except ImageError as error:
            raise ImageError(f"the entry {entry} of the layer: {error}") from None

    def standalone(self) -> int:
        """Complete the layer's own tree with the marks that overlayfs obeys; gives its root."""
        tree = self._tree
        if self._hides_root:
            self._hide_below_root()
        for row in self._opaque - {self.root}:
            before = self._marked[row] = tree.xattrs[row]
            tree.xattrs[row] = tree.intern(tuple(sorted((*tree.xattr_sets[before], OPAQUE))))
        return self.root

    def merge(self) -> int:
        """Merge the layer into those below; gives the root of all. The layer's own tree is gone then."""
        tree = self._tree
        for row, before in self._marked.items():
            tree.xattrs[row] = before
        lower = self._stack.root
        self._stack.root = self.root
        if lower < 0:
            return self.root
        children, modes, origins = tree.children, tree.mode, self._origins
        pending = [(self.root, lower)]
        while pending:
            own, below = pending.pop()
            hides = own in self._opaque or (own == self.root and self._hides_root)
            merged = children[below] if below >= 0 and not hides else {}
            for name, row in children[own].items():
                if row == WHITEOUT:
                    merged.pop(name, None)
                elif modes[row] & 0o170000 == stat.S_IFDIR:
                    there = merged.get(name, NONE)
                    pending.append((row, there if there in children else NONE))
                    merged[name] = row
                else:
                    merged[name] = origins.get(row, row)
            children[own] = merged
        return self.root

    # Entries

    def _add(self, entry: TarEntry, content: int) -> None:
        above, _, last = entry.name.rstrip(b"/").rpartition(b"/")
        known = None
        if last not in (b"", b".", b"..") and not last.startswith(_WHITEOUT):
            known = self._ready.get(above)
        if known is None:
            parts = split(entry.name)
            if not parts:
                self._add_root(entry)
                return
            if any(part.startswith(_AUFS) and part != _OPAQUE_MARK for part in parts):
                return
            upper = parts[:-1]
            if any(part.startswith(_WHITEOUT) for part in upper):
                raise ImageError("it lies below a whiteout")
            if parts[-1] == _OPAQUE_MARK:
                self._hide(self._make_parent(upper)[0].own)
                return
            if parts[-1].startswith(_WHITEOUT):
                self._delete(upper, parts[-1].removeprefix(_WHITEOUT))
                return
            known = self._make_parent(upper)
            if last == parts[-1]:
                self._ready[above] = known
            last = parts[-1]
        place, where = known
        if len(last) > on_disk.NAME_MAX:
            raise ImageError(f"a name of {len(last)} bytes; at most {on_disk.NAME_MAX} are taken")
        check_depth(len(where) + 1)
        self._put(place, last, entry, content)

    def _add_root(self, entry: TarEntry) -> None:
        if entry.kind != reader.DIRECTORY:
            raise ImageError("the image's root is not a directory")
        self._tree.set_attributes(self.root, self._attributes(entry))

    def _put(self, place: _Place, name: bytes, entry: TarEntry, content: int) -> None:
        tree, kind = self._tree, entry.kind
        if kind == reader.HARD_LINK:
            self._link(place, name, entry)
            return
        names = tree.children[place.own]
        there = names.get(name, NONE)
        if kind == reader.DIRECTORY:
            if there >= 0 and there in tree.children:
                tree.set_attributes(there, self._attributes(entry))
                return
            self._put_directory(place, name, tree.add_directory(self._attributes(entry)))
            return
        if kind == reader.FILE:
            row = tree.add_file(self._attributes(entry), entry.size, content)
        elif kind == reader.SYMLINK:
            if not entry.link:
                raise ImageError("a symbolic link without a target")
            if len(entry.link) > on_disk.TARGET_MAX:
                raise ImageError(f"a target of {len(entry.link)} bytes; at most {on_disk.TARGET_MAX} are taken")
            row = tree.add_symlink(self._attributes(entry), entry.link)
        else:
            if kind == reader.CHARACTER and entry.device == (0, 0):
                raise ImageError("a character device 0:0, which overlayfs would take for a deletion")
            row = tree.add_device(_NODES[kind], self._attributes(entry), *entry.device)
        self._set(place, name, row)

    def _set(self, place: _Place, name: bytes, row: int) -> None:
        """Give a name of a directory of this layer to a row, whatever has it now."""
        names = self._tree.children[place.own]
        if name in names:
            self._copied.discard((place.own, name))
            self._ready.clear()
        elif place.below >= 0 and name in self._tree.children[place.below]:
            self._ready.clear()  # it may be a link that ways have led through
        names[name] = row

    def _put_directory(self, place: _Place, name: bytes, row: int) -> None:
        """Do the same for a new directory: what is below shows through, unless the name was another file's."""
        tree = self._tree
        replaces = name in tree.children[place.own]
        below = tree.children[place.below].get(name, NONE) if place.below >= 0 else NONE
        self._set(place, name, row)
        self._below[row] = below if below in tree.children else NONE
        if replaces:
            self._hide(row)

    def _link(self, place: _Place, name: bytes, entry: TarEntry) -> None:
        tree = self._tree
        *upper, last = split(entry.link) or (b"",)
        source, where = self._resolve(tuple(upper)) if last else (_Place(NONE, NONE), ())
        row = self._look(source, last) if last else NONE
        if row < 0:
            raise ImageError(f"a hard link to {show(entry.link)}, which is not there")
        if row in tree.children:
            raise ImageError(f"a hard link to the directory {show(entry.link)}")
        if source.own < 0 or last not in tree.children[source.own]:
            source = self._make(where)
            value = tree.value[row]
            copy = tree.copy(row, self._take(value, tree.size[row]) if stat.S_ISREG(tree.mode[row]) else value)
            self._origins[copy] = row
            tree.children[source.own][last] = copy
            self._copied.add((source.own, last))
            row = copy
        if (source.own, last) != (place.own, name):
            self._set(place, name, row)

    # Deletions

    def _delete(self, upper: Parts, name: bytes) -> None:
        if name in (b"", b".", b".."):
            raise ImageError("it deletes what has no name")
        tree = self._tree
        place, where = self._resolve(upper)
        own = tree.children[place.own].get(name, NONE) if place.own >= 0 else NONE
        if own > WHITEOUT:
            if own in tree.children:
                self._hide(own)
                return
            if (place.own, name) not in self._copied:  # an entry of this layer: a deletion is for what lies below
                return
            del tree.children[place.own][name]
            self._copied.discard((place.own, name))
        if own != WHITEOUT and place.below >= 0 and name in tree.children[place.below]:
            tree.children[self._make(where).own][name] = WHITEOUT
            self._ready.clear()

    def _hide(self, row: int) -> None:
        """Hide what lower layers have in this directory, which is this layer's."""
        if row == self.root:
            self._hides_root = True
        if self._below[row] < 0:
            return
        self._opaque.add(row)
        self._ready.clear()
        tree = self._tree
        pending = [row]
        while pending:
            directory = pending.pop()
            if self._below[directory] < 0:
                continue  # and so have all below it
            self._below[directory] = NONE
            names = tree.children[directory]
            for name in [name for name, inner in names.items() if inner == WHITEOUT]:
                del names[name]  # nothing is to be hidden there: overlayfs would show a device
            pending += [inner for inner in names.values() if inner in tree.children]

    def _hide_below_root(self) -> None:
        """overlayfs merges the roots of layers in any case, so all that is below is deleted by name."""
        tree = self._tree
        if self._stack.root < 0:
            return
        own = tree.children[self.root]
        for name, below in tree.children[self._stack.root].items():
            row = own.get(name, NONE)
            if row < 0:
                own[name] = WHITEOUT
            elif row in tree.children and below in tree.children:
                self._opaque.add(row)

    # Ways

    def _look(self, place: _Place, name: bytes) -> int:
        """Return the row that a name in a directory shows, or NONE."""
        children = self._tree.children
        if place.own >= 0:
            row = children[place.own].get(name, NONE)
            if row >= 0:
                return NONE if row == WHITEOUT else row
        return children[place.below].get(name, NONE) if place.below >= 0 else NONE

    def _enter(self, place: _Place, name: bytes) -> _Place:
        """Return the directory by this name, which shows one or nothing."""
        children = self._tree.children
        own = children[place.own].get(name, NONE) if place.own >= 0 else NONE
        if own > WHITEOUT:
            return _Place(own, self._below[own])
        if own == WHITEOUT:
            return _Place(NONE, NONE)
        return _Place(NONE, children[place.below].get(name, NONE) if place.below >= 0 else NONE)

    def _resolve(self, parts: Parts) -> tuple[_Place, Parts]:
        """Return the directory of this name without symbolic links on the way, and what it is called then.

        Links are followed within the image, and end at its root where they lead out; what is not there stays. Raises
        ImageError for a file where a directory has to be.
        """
        tree = self._tree
        places = [_Place(self.root, self._below[self.root])]
        done: list[bytes] = []
        pending = list(reversed(parts))
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                if done:
                    done.pop()
                    places.pop()
                continue
            row = self._look(places[-1], part)
            if row >= 0 and row not in tree.children:
                if not stat.S_ISLNK(tree.mode[row]):
                    raise ImageError("there is a file where it needs a directory")
                links += 1
                if links > _LINKS_MAX:
                    raise ImageError("there are too many symbolic links in its path")
                target = tree.targets[tree.value[row]]
                if target.startswith(b"/"):
                    done.clear()
                    del places[1:]
                pending += [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
                continue
            places.append(self._enter(places[-1], part))
            done.append(part)
            check_depth(len(done))
        return places[-1], tuple(done)

    def _make_parent(self, parts: Parts) -> tuple[_Place, Parts]:
        _, where = self._resolve(parts)
        return self._make(where), where

    def _make(self, where: Parts) -> _Place:
        """Return the directory of this name, which leads through no link, made in this layer if need be."""
        tree = self._tree
        place = _Place(self.root, self._below[self.root])
        for name in where:
            own = tree.children[place.own].get(name, NONE)
            if own <= WHITEOUT:
                if len(name) > on_disk.NAME_MAX:
                    raise ImageError(f"a name of {len(name)} bytes; at most {on_disk.NAME_MAX} are taken")
                below = NONE if own == WHITEOUT else self._enter(place, name).below
                own = tree.add_directory(Attributes()) if below < 0 else tree.copy(below, 0)
                self._put_directory(place, name, own)
            place = _Place(own, self._below[own])
        return place

    # Attributes

    def _attributes(self, entry: TarEntry) -> Attributes:
        if not entry.xattrs:
            return Attributes(entry.mode, entry.uid, entry.gid, entry.mtime)
        mode, xattrs, left_out = taken_xattrs(entry)
        self._stack.left_out.update(left_out)
        return Attributes(mode, entry.uid, entry.gid, entry.mtime, self._tree.intern(xattrs))
