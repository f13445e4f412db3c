"""A tar archive of an image, in a file of its own: where in it each file is, so that it can be read without unpacking.

One that is compressed, or comes through a pipe, is copied into a file without a name first.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import ImageError, UnavailableError, UsageError
from ..tar import reader as tar_reader
from ..tar.decompress import LayerStream
from ..tar.reader import Tar
from .location import STDIN

_PIECE = 1 << 20  # bytes
_LINKS_MAX = 40  # steps, as in the kernel
_PASSED = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # pipes that the caller has opened already


class Archive:
    """Owns its file until close(). `path`: what can be opened to read it in place; "" where that is only a copy.

    Any thread may read.
    """

    def __init__(self, path: str) -> None:
        """Open the archive at `path`, or at standard input (STDIN). Raises UsageError, ImageError, UnavailableError."""
        self._file = _open(path)
        try:
            plain = _uncompressed(self._file)
            self.path = path if plain is self._file and path != STDIN else ""
            self._file = plain
            self.size = os.fstat(plain.fileno()).st_size
            self._places, self._links = _survey(plain, self.size)
        except OSError as error:
            self.close()
            raise UnavailableError(f"cannot read the archive {path}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def place(self, name: str) -> tuple[int, int]:
        """Where the content of a file is: offset and bytes. Older versions of docker link equal layers to one another.

        Raises ImageError.
        """
        key = os.path.normpath(name.encode())
        for _ in range(_LINKS_MAX):
            if key not in self._links:
                break
            key = self._links[key]
        if key in self._links:
            raise ImageError(f"its file {tar_reader.show(name.encode())} is a link of more than {_LINKS_MAX} steps")
        if key not in self._places:
            raise ImageError(f"it has no file {tar_reader.show(name.encode())}")
        return self._places[key]

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a small file. Raises ImageError."""
        at, size = self.place(name)
        if size > most:
            raise ImageError(f"its {name} has {size} bytes; at most {most} are read")
        return b"".join(self.pieces(at, size))

    def pieces(self, at: int, size: int) -> Iterator[bytes]:
        """Yield `size` bytes of the archive from `at` on. Raises ImageError."""
        while size:
            piece = os.pread(self._file.fileno(), min(size, _PIECE), at)
            if not piece:
                raise ImageError("it was cut short while it was read")
            yield piece
            at, size = at + len(piece), size - len(piece)

    def digest(self, at: int, size: int) -> str:
        hasher = hashlib.sha256()
        for piece in self.pieces(at, size):
            hasher.update(piece)
        return f"sha256:{hasher.hexdigest()}"


def _open(path: str) -> BinaryIO:
    if path == STDIN:
        return _spooled(sys.stdin.buffer)
    try:
        # Opening a pipe without a writer would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror}") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    if stat.S_ISFIFO(mode) and path.startswith(_PASSED):
        os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "rb") as pipe:
            return _spooled(pipe)
    os.close(descriptor)
    hint = f"; give it to standard input: `< {path}`, and - as its name" if stat.S_ISFIFO(mode) else ""
    raise UsageError(f"{path} is not a regular file{hint}")


def _spooled(pipe: BinaryIO) -> BinaryIO:
    file: BinaryIO = tempfile.TemporaryFile(prefix="pyerofs-")  # noqa: SIM115 - until close()
    try:
        while piece := pipe.read(_PIECE):
            file.write(piece)
        file.seek(0)
    except OSError as error:
        file.close()
        where = tempfile.gettempdir()
        raise UnavailableError(f"cannot keep what the pipe brings in {where} (TMPDIR): {error.strerror}") from None
    return file


def _uncompressed(file: BinaryIO) -> BinaryIO:
    """Return the archive itself, or a nameless file that holds what was compressed; then the first is closed."""
    head = file.read(4)
    file.seek(0)
    if not head.startswith(b"\x1f\x8b") and head != b"\x28\xb5\x2f\xfd":
        return file
    stream = LayerStream(file)
    plain = tempfile.TemporaryFile(prefix="pyerofs-")  # noqa: SIM115 - until close()
    try:
        while piece := stream.read(_PIECE):
            plain.write(piece)
        plain.seek(0)
    except BaseException:
        plain.close()
        raise
    file.close()
    return plain


def _survey(file: BinaryIO, size: int) -> tuple[dict[bytes, tuple[int, int]], dict[bytes, bytes]]:
    """Where in the archive each file is, and which names are only links."""
    places: dict[bytes, tuple[int, int]] = {}
    links: dict[bytes, bytes] = {}

    def skip(count: int) -> bool:
        return file.seek(count, os.SEEK_CUR) <= size

    tar = Tar(file.read, skip)
    for entry in tar:
        name = os.path.normpath(entry.name)
        places.pop(name, None)
        links.pop(name, None)
        if entry.kind == tar_reader.FILE:
            places[name] = (tar.position, entry.size)
        elif entry.kind == tar_reader.SYMLINK:
            links[name] = os.path.normpath(os.path.join(os.path.dirname(name), entry.link))
        elif entry.kind == tar_reader.HARD_LINK:
            links[name] = os.path.normpath(entry.link)
    return places, links
