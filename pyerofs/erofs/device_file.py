"""The file that a layer's contents are laid into, hashed as it grows: what becomes a device of a mount.

A thread writes and hashes, beside the download and the parsing that bring the next bytes: a chunk as soon as nothing
can change it any more, so that hardly anything is left to do when the last byte has come.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from functools import partial
from typing import Self

from ..ahead import InTurn
from ..core import granule_sums
from . import chunk_index

CHUNK = chunk_index.CHUNK_SIZE  # bytes
_PIECE = 1 << 20  # bytes that are written at once
_WAITING = 8  # pieces to write, and chunks to hash


class DeviceFile:
    """Owns its file until close(), which removes it unless it has been moved. For one thread. Raises OSError.

    What cannot be written is an error of a later call, of finish() at the latest. `path` of the file; `size`: bytes
    that are settled. `index`: after finish(), a chunk index of all of them; `sums`: CRC32C of each granule, as the
    cache keeps them.
    """

    def __init__(self, directory: str) -> None:
        """Make the file in `directory`."""
        self.size = 0
        self.index = b""
        self._fd, self.path = tempfile.mkstemp(dir=directory, prefix="device-")
        self.sums = array("I")
        self._work: InTurn | None = None
        self._piece = bytearray()  # what comes to lie at _start, and has not been given to the thread
        self._start = 0
        self._written = self._hashed = 0  # bytes that the thread has been told to write, and to hash
        self._entries: list[tuple[int, int, bytes]] = []

    def fileno(self) -> int:
        return self._fd

    def land(self, offset: int, data: bytes | bytearray) -> None:
        """Write at `offset`, which is settled nowhere behind it."""
        if not self._start <= offset <= self._start + len(self._piece):
            self._flush()
            self._start = offset
            self._written = min(self._written, offset)
        del self._piece[offset - self._start :]  # what had come there does not count
        self._piece += data
        if len(self._piece) >= _PIECE:
            self._flush()

    def settle(self, size: int) -> None:
        """Note that the first `size` bytes will not be written again."""
        self.size = size
        self._hash_until(min(size, self._written))

    def finish(self) -> None:
        """Cut the file to what is settled, and make its index."""
        self._flush()
        self._drain()
        os.ftruncate(self.fileno(), self.size)
        self._hash_until(self.size)
        if self._hashed < self.size:
            self._hash(self._hashed, self.size - self._hashed)
        self._drain()
        self.index = chunk_index.encode(chunk_index.NONE, self.size, self._entries)

    def _flush(self) -> None:
        if self._piece:
            self._in_turn().add(partial(self._write, self._start, bytes(self._piece)))
            self._start += len(self._piece)
            self._written = self._start
            self._piece.clear()
            self._hash_until(min(self.size, self._written))

    def _hash_until(self, end: int) -> None:
        while self._hashed + CHUNK <= end:
            self._in_turn().add(partial(self._hash, self._hashed, CHUNK))
            self._hashed += CHUNK

    def _in_turn(self) -> InTurn:
        if self._work is None:
            self._work = InTurn("pyerofs-device", _WAITING)
        return self._work

    def _drain(self) -> None:
        if self._work is not None:
            self._work.drain()

    # By the thread

    def _write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def _hash(self, start: int, length: int) -> None:
        data = os.pread(self._fd, length, start)
        self.sums.extend(granule_sums(data))
        self._entries.append((start, start, hashlib.sha256(data).digest()))

    # By the caller's

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file; fewer at its end."""
        if self._piece or self._work is not None:
            self._flush()
            self._drain()
        return os.pread(self.fileno(), length, offset)

    def unname(self) -> None:
        """Remove the file's name: whatever ends this process, the file goes too."""
        os.unlink(self.path)
        self.path = ""

    def move(self, path: str) -> None:
        """Give the file another name on the same filesystem."""
        os.rename(self.path, path)
        self.path = ""

    def close(self) -> None:
        if self._work is not None:
            self._work.close()
            self._work = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self.path:
                os.unlink(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
