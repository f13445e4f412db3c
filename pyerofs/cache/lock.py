"""The lock of a directory in the cache, which is removed with it."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from .files import open_file

if TYPE_CHECKING:
    from collections.abc import Callable


def lock_entry(path: str, waiting: Callable[[], None] | None = None) -> int | None:
    """Lock a directory, by the descriptor that is returned; None where the directory is gone.

    `waiting` is called before it waits for another holder. Raises OSError.
    """
    lock = os.path.join(path, "lock")
    try:
        fd = open_file(lock, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        return None
    try:
        _lock(fd, waiting)
        ours = os.path.samestat(os.fstat(fd), os.stat(lock))
    except FileNotFoundError:
        ours = False
    except BaseException:
        os.close(fd)
        raise
    if not ours:
        os.close(fd)
    return fd if ours else None


def _lock(fd: int, waiting: Callable[[], None] | None) -> None:
    if waiting:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
        else:
            return
    fcntl.flock(fd, fcntl.LOCK_EX)
