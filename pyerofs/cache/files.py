"""The cache's files: opened so that a symlink is not followed, and that what is no file holds nobody up."""

from __future__ import annotations

import errno
import os
import stat


def open_file(path: str, flags: int) -> int:
    """Return a descriptor of the regular file at `path`, made with mode 0600 where `flags` (of os.open) make it.

    Raises OSError: ELOOP for a symlink, EINVAL for what is no regular file.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return fd


def read_file(path: str, most: int) -> bytes:
    """Return what is in the file, but no more than `most` bytes. Raises OSError."""
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read(most)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`. Raises OSError."""
    while data:
        data = data[os.write(fd, data) :]


def replace_file(path: str, data: bytes, *, durable: bool = False) -> None:
    """Put `data` at `path`, whole or not at all as other processes see it.

    `durable`: after a crash of the machine too. Raises OSError. For one thread of a process at a time.
    """
    temporary = f"{path}.{os.getpid()}"
    fd = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(fd, data)
        if durable:
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def sync_directory(path: str) -> None:
    """Make the directory's entries survive a crash of the machine. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
