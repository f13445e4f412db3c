"""A blob as a file object: virtual file I/O over the cache and the registry, without any mount."""

from __future__ import annotations

import errno
import io
import os
import select
import time
import weakref
from typing import TYPE_CHECKING

from ..cache.manifests import ManifestCache
from ..cache.paths import chosen_directory
from ..config.file import oci_options
from ..context import NOBODY, Context, log_of_caller, trace_of_caller
from ..errors import ImageError
from ..oci.location import Location
from ..source.local import LocalSource
from ..source.open import open_layer
from .base import SLICE, Export

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

COPY = 1 << 20  # bytes at a time


def open_export(source: str, options: Sequence[str] | str = (), context: Context = NOBODY) -> Export:
    """Open the export of an image's layer or a local file; `options` as after -o. Raises PyerofsError."""
    texts = [options] if isinstance(options, str) else list(options)
    location = Location.parse(source, image=any(texts))
    oci = oci_options(texts, location)
    if location.is_file:
        return Export(LocalSource(location.path), oci, context)
    manifests = ManifestCache(chosen_directory(oci), context.log)
    return Export(open_layer(location, oci, context=context, manifests=manifests), oci, context)


def open_blob(source: str, options: Sequence[str] | str = (), *, log: Callable[[str], None] | None = None) -> BlobFile:
    """Open a layer of an image, or a local file, for reading.

    `options` as after -o, such as "oci=0"; `log` gets a line for each thing worth knowing, from any thread. Raises
    PyerofsError. Close it, or use it in a with statement: it has threads
    of its own.
    """
    context = Context(log_of_caller(log), trace_of_caller(None))
    return BlobFile(open_export(source, options, context))


class BlobFile(io.RawIOBase):
    """A readable, seekable raw file; owns its export.

    pread() and sendfile() may be called from several threads at once; what uses the file position is for one thread at
    a time. Reading raises PyerofsError where the bytes cannot be had: never a missing byte before the end. Where only
    the digest of the whole vouches for them, a wrong one is found at the end: the read that makes it whole raises
    ImageError.
    """

    def __init__(self, export: Export):
        self._export = export
        # A file left open, as at the end of a script, must not hold up the end of the interpreter.
        self._end = weakref.finalize(self, export.close)
        self._position = 0
        self._tally = export.tally()
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
        """Send `count` bytes from `offset` to a file descriptor, in chunks, without passing them through Python.

        Returns how many there were before the blob's end. Raises OSError for what out_fd refuses, PyerofsError for
        bytes that cannot be had.
        """
        self._check_open()
        if count < 0 or offset < 0:
            raise ValueError("sendfile takes no negative numbers")
        total = max(0, min(count, self.size - offset))
        if self._tally and total == self.size:
            self._copy(out_fd)  # which costs a copy, and tells whether exactly this was right
            return total
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
        if self._tally and done:
            self._tally.passed(offset, done)
            self._judge(None)
        return done

    def _copy(self, out_fd: int) -> None:
        """All of it."""
        buffer = memoryview(bytearray(min(COPY, self.size)))
        for at in range(0, self.size, len(buffer)):
            piece = buffer[: self.size - at]
            self._export.read_into(piece, at)
            view = piece
            while view:
                try:
                    view = view[os.write(out_fd, view) :]
                except BlockingIOError:
                    select.select((), (out_fd,), (), SLICE)
            if self._tally:
                self._judge(self._tally.add(at, piece))

    def _judge(self, found: str | None) -> None:
        """`found`: the digest of all that was given, where that is known now. Raises ImageError."""
        tally = self._tally
        if tally is None or not (found or tally.is_whole):
            return
        if found == tally.digest or (found is None and self._export.settle() != "mismatch"):
            self._tally = None  # it need not be reported again
            return
        self._export.reject()
        what = f"it is {found} instead of {tally.digest}" if found else f"it is not {tally.digest}"
        raise ImageError(
            f"{self.name}: all of layer {self._export.source.layer} was read, and {what}: it was changed at its "
            "source. Nothing of it stays in the cache"
        )

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
            if self._tally:
                self._judge(self._tally.add(offset, view[:length]))
        return length
