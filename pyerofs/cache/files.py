"""The cache's files: opened without following symlinks, and without waiting at what is not a regular file."""

from __future__ import annotations

import errno
import os
import stat


def open_file(path: str, flags: int) -> int:
    """Return a descriptor of the regular file at `path`, made with mode 0600 where `flags` (of os.open) make it.

    Raises OSError: ELOOP for a symlink, EINVAL for what is not a regular file.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return fd


def read_file(path: str, most: int) -> bytes:
    """Return what is in the file, but no more than `most` bytes. Raises OSError."""
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read(
            min(most, os.fstat(file.fileno()).st_size)
        )  # it takes that much memory first, and gives it back


def sync_directory(path: str) -> None:
    """Make the directory's entries survive a crash of the machine. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
