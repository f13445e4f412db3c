"""The file that a layer's contents are laid into, hashed as it grows: what becomes a device of a mount.

Chunks are hashed as soon as nothing can change them any more, beside the download that brings the next ones, so that
hardly anything is left to do when the last byte has come.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from typing import Self

from ..core import GRANULE, crc32c
from . import chunk_index

CHUNK = chunk_index.CHUNK_SIZE  # bytes


class DeviceFile:
    """Owns its file until close(), which removes it unless it has been moved. For one thread. Raises OSError.

    `path` of the file; `size`: bytes that are settled. `index`: after finish(), a chunk index of all of them; `sums`:
    CRC32C of each granule, as the cache keeps them.
    """

    def __init__(self, directory: str) -> None:
        """Make the file in `directory`."""
        self.size = 0
        self.index = b""
        self._fd, self.path = tempfile.mkstemp(dir=directory, prefix="device-")
        self.sums = array("I")
        self._hashed = 0
        self._entries: list[tuple[int, int, bytes]] = []

    def fileno(self) -> int:
        return self._fd

    def land(self, offset: int, data: bytes) -> None:
        """Write at `offset`, which is settled nowhere behind it."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self.fileno(), view, offset)
            view, offset = view[count:], offset + count

    def settle(self, size: int) -> None:
        """Note that the first `size` bytes will not be written again."""
        self.size = size
        while self._hashed + CHUNK <= size:
            self._hash(CHUNK)

    def finish(self) -> None:
        """Cut the file to what is settled, and make its index."""
        os.ftruncate(self.fileno(), self.size)
        while self._hashed < self.size:
            self._hash(min(CHUNK, self.size - self._hashed))
        self.index = chunk_index.encode(chunk_index.NONE, self.size, self._entries)

    def _hash(self, length: int) -> None:
        data = os.pread(self.fileno(), length, self._hashed)
        granules = memoryview(data)
        self.sums.extend(crc32c(granules[at : at + GRANULE]) for at in range(0, len(data), GRANULE))
        self._entries.append((self._hashed, self._hashed, hashlib.sha256(data).digest()))
        self._hashed += length

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file; fewer at its end."""
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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self.path:
                os.unlink(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
