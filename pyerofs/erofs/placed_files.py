"""The files of an EROFS image by what they are called, and where their contents lie.

It is for what is known of an image to be told in names, and back: nothing that is read here is served. An image may
say anything; what does not make sense is an ImageError, and never more memory or time than its size allows.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import ImageError
from .on_disk import TARGET_MAX
from .reader import CHUNKED, INLINE, PLAIN, ErofsReader, Inode, merged

_PIECE = 64 << 10  # bytes that are read and kept as one
_KEPT = 256  # pieces
_LINKS_MAX = 40  # as in the kernel
_CHUNKS_MAX = 1 << 24  # of one file


class Placed(NamedTuple):
    """Blocks of a file from its block `first` on: `blocks` of them, at the byte `start` of device number `device`."""

    first: int
    blocks: int
    device: int
    start: int


class PlacedFiles:
    """Reads one image. `read(offset, length)` gives bytes of its primary device, number 0. For one thread.

    `size`: its bytes. `check` is called for each inode, and may raise what ends it all. The other devices are numbered
    in the order of the device= options. `inodes`: how many it says that it has; `block`: bytes. Raises ImageError, and
    what `read` raises.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, check: Callable[[], None] = lambda: None) -> None:
        self._reader = ErofsReader(_Pieces(read, size).fill, size, None)
        self._check = check
        self.inodes = self._reader.inodes
        self.block = self._reader.block_size

    def inode(self, nid: int) -> Inode:
        """Return an inode by its number."""
        self._check()
        return self._reader.inode(nid)

    def placed(self, inode: Inode) -> Iterator[Placed]:
        """Yield where the contents of a file or directory lie, but for holes and what stands behind the inode.

        Nothing of one that is compressed.
        """
        if inode.layout not in (PLAIN, INLINE, CHUNKED):
            return
        if inode.layout == CHUNKED and -(-inode.size // self.block) > _CHUNKS_MAX << (inode.value & 31):
            raise ImageError("a file has too many chunks")
        length = inode.size if inode.layout != INLINE else (inode.size - 1) // self.block * self.block
        if length <= 0:
            return
        at = 0
        for piece in merged(self._reader.pieces(inode, 0, length)):
            if piece.device >= 0:
                yield Placed(at // self.block, -(-piece.length // self.block), piece.device, piece.start)
            at += piece.length

    def lookup(self, path: bytes) -> Inode | None:
        """Return what a path leads to, symbolic links followed within the image; None where it leads nowhere."""
        way = [self.inode(self._reader.root)]
        pending = _parts(path)
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                way = way[:-1] or way
                continue
            if not stat.S_ISDIR(way[-1].mode):
                return None
            named = self._reader.read_names(way[-1]).get(part)
            if named is None:
                return None
            found = self.inode(named[0])
            if stat.S_ISLNK(found.mode):
                links += 1
                if links > _LINKS_MAX or not 0 < found.size <= TARGET_MAX:
                    return None
                target = self._reader.content(found)
                if target.startswith(b"/"):
                    del way[1:]
                pending += _parts(target)
                continue
            way.append(found)
        return way[-1]

    def walk(self, root: Inode | None = None, path: bytes = b"") -> Iterator[tuple[bytes, Inode]]:
        """Yield each file below a directory by one of its names, directories before what they contain."""
        seen: set[int] = set()
        pending = [(path, root or self.inode(self._reader.root))]
        while pending:
            path, inode = pending.pop()
            if inode.nid in seen:
                continue
            seen.add(inode.nid)
            yield path or b"/", inode
            if stat.S_ISDIR(inode.mode):
                names = self._reader.read_names(inode)
                pending += [(path + b"/" + name, self.inode(nid)) for name, (nid, _) in names.items()][::-1]


def _parts(path: bytes) -> list[bytes]:
    """Return the names on the way, the last one first."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


class _Pieces:
    """The bytes of a device, read in large pieces, of which some are kept: metadata that lie together come together."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size = read, size
        self._pieces: dict[int, bytes] = {}

    def fill(self, view: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from this offset on, which the device has."""
        done = 0
        while done < len(view):
            begin = (offset + done) // _PIECE * _PIECE
            part = self._piece(begin)[offset + done - begin :][: len(view) - done]
            if not part:
                raise ImageError("its metadata point beyond its end")
            view[done : done + len(part)] = part
            done += len(part)

    def _piece(self, begin: int) -> bytes:
        piece = self._pieces.get(begin)
        if piece is None:
            if len(self._pieces) >= _KEPT:
                del self._pieces[next(iter(self._pieces))]
            piece = self._pieces[begin] = self._read(begin, min(_PIECE, self._size - begin))
        return piece
