"""A local image file or block device as a source."""

from __future__ import annotations

import fcntl
import os
import stat
import struct

from ..errors import ImageError, UnavailableError, UsageError

_BLKGETSIZE64 = 0x80081272  # linux/fs.h


class LocalSource:
    """An image file or a block device. Owns `fd` until close(). `identity` tells it from a later one at its path."""

    def __init__(self, path: str):
        self.name = path
        self.digest = ""
        self.layer = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as e:
            raise UsageError(f"cannot open {path}: {e.strerror}") from None
        try:
            self.size = self._size(path)  # no FIFO then, nor anything else that one waits for
            os.set_blocking(self.fd, True)
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> str:
        found = os.fstat(self.fd)
        if stat.S_ISBLK(found.st_mode):
            return f"{found.st_rdev} {self.size}"
        return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"

    def _size(self, path: str) -> int:
        found = os.fstat(self.fd)
        if stat.S_ISBLK(found.st_mode):
            try:
                answer = fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8))
            except OSError as e:
                raise UnavailableError(f"cannot read the size of {path}: {e.strerror}") from None
            size = int(struct.unpack("=Q", answer)[0])
        elif stat.S_ISREG(found.st_mode):
            size = found.st_size
        else:
            raise UsageError(f"{path} is neither a regular file nor a block device")
        if not size:
            raise ImageError(f"{path} is empty")
        return size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
