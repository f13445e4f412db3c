"""pyerofs.Image: the files of an image, read lazily and without any mount, by every user."""

from __future__ import annotations

import errno
import fnmatch
import io
import os
import stat
import weakref
from typing import TYPE_CHECKING, NamedTuple, Self

from ..config.file import oci_options
from ..config.options import names_image
from ..context import Context, log_of_caller, trace_of_caller
from ..oci.location import Location
from .opened import OpenedImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Buffer

    from ..erofs.reader import Inode
    from ..erofs.stacked import TreeEntry
    from .copy import Meter

LINKS_MAX = 40  # symbolic links on the way to a file, as for the kernel
_MAGIC = frozenset("*?[")
_BUFFER = 1 << 17  # bytes


class Stat(NamedTuple):
    """What stat(2) tells. Times in nanoseconds; `ino` tells a file of this image from all others."""

    mode: int
    ino: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int


class ImageFiles:
    """The tree of files that a mount of the image shows.

    Paths begin at the image's root, with or without a slash; symbolic links are followed within the image. Close it, or
    use it in a with statement: it has threads of its own, and does not outlive a fork. Thread-safe.
    """

    def __init__(
        self,
        source: str,
        options: Sequence[str] | str = (),
        *,
        log: Callable[[str], None] | None = None,
        trace: Callable[[str], None] | None = None,
        shown: Meter | None = None,
    ) -> None:
        """Open what `mount` would mount: an image's reference, oci:DIR[:NAME], an archive, or a path.

        `options` as after -o; `log` gets a line for each thing worth knowing, from any thread. An image of ordinary
        layers is converted into the cache first, which `shown` follows. Raises PyerofsError.
        """
        texts = [options] if isinstance(options, str) else list(options)
        # A file that is there is meant, whatever the options say of images.
        self._location = Location.parse(source, image=names_image(texts) and not os.path.isfile(source))
        context = Context(log_of_caller(log), trace_of_caller(trace))
        self._opened = OpenedImage(self._location, oci_options(texts, self._location), context, shown)
        self._tree = self._opened.tree
        self._end = weakref.finalize(self, self._opened.close)
        self.name = str(self._location)

    def close(self) -> None:
        """End reads that are under way. Files that are open cannot be read any more."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Files

    def open(self, path: str) -> io.BufferedReader:
        """Open a file for reading bytes. Raises OSError as open() does."""
        return io.BufferedReader(self.open_raw(path), _BUFFER)

    def open_raw(self, path: str) -> ImageFile:
        """Open a file without a buffer. Raises OSError as open() does."""
        real, entry = self._find(path)
        if entry.is_directory:
            raise _error(errno.EISDIR, path)
        if not stat.S_ISREG(entry.inode.mode):
            raise _error(errno.EINVAL, path)
        return ImageFile(self, path, *self._tree.content(entry, real))

    def read_bytes(self, path: str) -> bytes:
        """Return the content of a file."""
        with self.open_raw(path) as file:
            return file.pread(file.size, 0)

    def listdir(self, path: str = "/") -> list[str]:
        """Return the names in a directory, in order."""
        return [os.fsdecode(name) for name in self._tree.names(self._directory(path))]

    def scandir(self, path: str = "/") -> Iterator[tuple[str, Stat]]:
        """Yield name and lstat() of each file in a directory."""
        directory = self._directory(path)
        for name in self._tree.names(directory):
            entry = self._tree.child(directory, name)
            if entry is not None:
                yield os.fsdecode(name), _stat(entry)

    def walk(self, top: str = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield directory, names of directories and of other files, from above, as os.walk()."""
        names: tuple[list[str], list[str]] = ([], [])
        for name, found in self.scandir(top):
            names[not stat.S_ISDIR(found.mode)].append(name)
        yield top, *names
        for name in names[0]:
            yield from self.walk(os.path.join(top, name))

    def stat(self, path: str, *, follow_symlinks: bool = True) -> Stat:
        """As os.stat(). Raises OSError."""
        return _stat(self._find(path, follow=follow_symlinks)[1])

    def lstat(self, path: str) -> Stat:
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: str) -> bool:
        """Whether a file is there; a link that leads nowhere is none."""
        return self._is(path, lambda _: True)

    def isdir(self, path: str) -> bool:
        return self._is(path, stat.S_ISDIR)

    def isfile(self, path: str) -> bool:
        return self._is(path, stat.S_ISREG)

    def _is(self, path: str, kind: Callable[[int], bool]) -> bool:
        try:
            return kind(self.stat(path).mode)
        except OSError:
            return False

    def readlink(self, path: str) -> str:
        """As os.readlink()."""
        _, entry = self._find(path, follow=False)
        if not stat.S_ISLNK(entry.inode.mode):
            raise _error(errno.EINVAL, path)
        return os.fsdecode(self._tree.link(entry))

    def xattrs(self, path: str, *, follow_symlinks: bool = True) -> dict[str, bytes]:
        """Return the extended attributes of a file."""
        found = self._tree.xattrs(self._find(path, follow=follow_symlinks)[1])
        return {os.fsdecode(name): value for name, value in found.items()}

    def glob(self, pattern: str) -> list[str]:
        """Return the paths that match, in order: with *, ? and [] in each component, and ** for any number of them."""
        parts = [part for part in pattern.split("/") if part]
        return sorted(set(self._glob("/", parts)))

    def _glob(self, top: str, parts: Sequence[str]) -> Iterator[str]:
        if not parts:
            yield top
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            yield from self._glob(top, rest)
            for name, found in self.scandir(top):
                if stat.S_ISDIR(found.mode):
                    yield from self._glob(os.path.join(top, name), parts)
            return
        if not self.isdir(top):
            return
        if not _MAGIC & set(part):
            path = os.path.join(top, part)
            try:
                self.lstat(path)
            except OSError:
                return
            yield from self._glob(path, rest)
            return
        for name in self.listdir(top):
            if fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith(".")):
                yield from self._glob(os.path.join(top, name), rest)

    def identity(self, path: str) -> object:
        """Return what two files with the same bytes may share, of whatever images: where the content lies.

        Files with an equal identity are equal; of those with another nothing is said.
        """
        real, entry = self._find(path)
        layer, inode = self._tree.content(entry, real)
        sources = self._opened.sources[layer]
        places = []
        for piece in self._tree.layers[layer].pieces(inode, 0, inode.size) if inode.size else ():
            if piece.device >= 0 and not sources[piece.device]:
                return object()  # a local file, of which no digest is known
            places.append((piece.length, sources[piece.device] if piece.device >= 0 else "", piece.start))
        return tuple(places)

    # Paths

    def _directory(self, path: str) -> TreeEntry:
        _, entry = self._find(path)
        if not entry.is_directory:
            raise _error(errno.ENOTDIR, path)
        return entry

    def _find(self, path: str, *, follow: bool = True) -> tuple[bytes, TreeEntry]:
        """Return the real path of a file and what it is. Raises OSError."""
        pending = [part for part in reversed(os.fsencode(path).split(b"/")) if part not in (b"", b".")]
        must_be_directory = path.endswith("/")
        way: list[tuple[bytes, TreeEntry]] = [(b"", self._tree.root)]
        links = 0
        while pending:
            name = pending.pop()
            directory = way[-1][1]
            if not directory.is_directory:
                raise _error(errno.ENOTDIR, path)
            if name == b"..":
                del way[max(1, len(way) - 1) :]
                continue
            entry = self._tree.child(directory, name)
            if entry is None:
                raise _error(errno.ENOENT, path)
            if stat.S_ISLNK(entry.inode.mode) and (pending or follow or must_be_directory):
                links += 1
                if links > LINKS_MAX:
                    raise _error(errno.ELOOP, path)
                target = self._tree.link(entry)
                if target.startswith(b"/"):
                    del way[1:]
                pending += [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
                continue
            way.append((name, entry))
        if must_be_directory and not way[-1][1].is_directory:
            raise _error(errno.ENOTDIR, path)
        return b"/".join(name for name, _ in way) or b"/", way[-1][1]

    def _read_into(self, layer: int, inode: Inode, view: memoryview, offset: int) -> None:
        self._tree.layers[layer].read_into(inode, view, offset)


class ImageFile(io.RawIOBase):
    """A file of an image; readable and seekable. pread() may be called from several threads at once."""

    def __init__(self, image: ImageFiles, name: str, layer: int, inode: Inode) -> None:
        self._image, self._layer, self._inode = image, layer, inode
        self._position = 0
        self.name = name
        self.size = inode.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        count = self.pread_into(view, self._position)
        self._position += count
        return count

    def pread(self, n: int, offset: int) -> bytes:
        """Return exactly n bytes at the offset, fewer only at the end; the position stays."""
        data = bytearray(max(0, min(n, self.size - offset)))
        self.pread_into(memoryview(data), offset)
        return bytes(data)

    def pread_into(self, view: memoryview, offset: int) -> int:
        """Fill the buffer from the offset on; return how many bytes there were. The position stays."""
        self._check_open()
        count = max(0, min(len(view), self.size - offset))
        if count:
            self._image._read_into(self._layer, self._inode, view[:count], offset)
        return count

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def _stat(entry: TreeEntry) -> Stat:
    inode = entry.inode
    device = stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
    return Stat(
        mode=inode.mode,
        ino=entry.layer << 56 | inode.nid,
        nlink=inode.nlink,
        uid=inode.uid,
        gid=inode.gid,
        size=inode.size,
        mtime_ns=inode.mtime_ns,
        rdev=os.makedev(*inode.rdev) if device else 0,
    )


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
