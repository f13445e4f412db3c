"""A blob as a file object: virtual file I/O over the cache and the registry, without any mount."""

from __future__ import annotations

import errno
import io
import os
import time
import weakref
from typing import TYPE_CHECKING

from .cachepath import chosen_directory
from .config import oci_options
from .export import SLICE, Export
from .localimage import open_image
from .location import Location
from .manifests import Manifests
from .source import LocalSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer


def _ignore(_: str) -> None:
    pass


def open_export(
    source: str,
    options: Sequence[str] | str = (),
    *,
    log: Callable[[str], None] = _ignore,
    trace: Callable[[str], None] | None = None,
) -> Export:
    """The export of an image's layer or a local file; `options` as after -o. Raises PyerofsError."""
    texts = [options] if isinstance(options, str) else list(options)
    oci = oci_options(texts, source)
    if Location.parse(source, image=any(texts)).kind == "file":
        return Export(LocalSource(source), oci, log)
    kept = Manifests(chosen_directory(oci), log)
    return Export(open_image(source, oci, trace=trace, kept=kept, log=log), oci, log)


def open_blob(source: str, options: Sequence[str] | str = (), *, log: Callable[[str], None] = _ignore) -> BlobFile:
    """Opens a layer of an image (or a local file) for reading. `options` as after -o, such as "oci=0".

    Raises PyerofsError. Close it, or use it in a with statement: it has threads of its own.
    """
    return BlobFile(open_export(source, options, log=log))


class BlobFile(io.RawIOBase):
    """A readable, seekable raw file; owns its export. pread() and sendfile() may be called from several threads at
    once; what uses the file position is for one thread at a time.

    Reading raises PyerofsError where the bytes cannot be had: never a wrong or a missing byte before the end.
    """

    def __init__(self, export: Export):
        self._export = export
        # A file that nobody closes, as at the end of a script, must not hold up the end of the interpreter.
        self._end = weakref.finalize(self, export.close)
        self._position = 0
        self.size = export.size
        self.name = export.source.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        length = self._pread_into(view, self._position)
        self._position += length
        return length

    def pread(self, n: int, offset: int) -> bytes:
        """Exactly the n bytes at the offset, fewer only at the blob's end; the file position stays."""
        self._check_open()
        if n < 0 or offset < 0:
            raise ValueError("pread takes no negative numbers")
        data = bytearray(max(0, min(n, self.size - offset)))
        self._pread_into(memoryview(data), offset)
        return bytes(data)

    def sendfile(self, out_fd: int, offset: int, count: int) -> int:
        """Sends `count` bytes from the offset to any file descriptor, in chunks, without passing them through Python.

        Returns how many there were before the blob's end. Raises OSError for what out_fd refuses, PyerofsError for
        bytes that cannot be had.
        """
        self._check_open()
        if count < 0 or offset < 0:
            raise ValueError("sendfile takes no negative numbers")
        total = max(0, min(count, self.size - offset))
        done = 0
        deadline = time.monotonic() + self._export.timeout
        with self._export.reading():
            while done < total:
                sent = self._send_some(out_fd, offset + done, total - done)
                done += sent
                now = time.monotonic()
                if sent:
                    deadline = now + self._export.timeout
                elif now > deadline:
                    raise self._export.timed_out(offset + done)
        return done

    def _send_some(self, out_fd: int, offset: int, count: int) -> int:
        try:
            return self._export.store.sendfile(out_fd, offset, count, SLICE)
        except OSError as e:
            if e.errno == errno.EIO and self._export.last_error is not None:
                raise self._export.last_error from None
            self._check_open()
            raise

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._end()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _pread_into(self, view: memoryview, offset: int) -> int:
        self._check_open()
        length = max(0, min(len(view), self.size - offset))
        if length:
            self._export.read_into(view[:length], offset)
        return length
