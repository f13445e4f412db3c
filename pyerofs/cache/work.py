"""Directories in the cache for files that are being made, each for one process, and removed with all that is in them.

DIRECTORY/work/NAME/    with a lock, held as long as it is in use: without, it is of a process that was killed
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

from .lock import lock_entry
from .paths import make_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "work"


@contextlib.contextmanager
def work_directory(directory: str) -> Iterator[str]:
    """Give a new directory in the cache `directory`; what killed processes have left is removed first.

    Raises UsageError, OSError.
    """
    parent = os.path.join(directory, NAME)
    make_directory(directory)
    make_directory(parent)
    for name in os.listdir(parent):
        _remove_left(os.path.join(parent, name))
    lock = None
    while lock is None:  # another process took it for one that was left, between the two steps
        path = tempfile.mkdtemp(dir=parent)
        lock = lock_entry(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _remove_left(path: str) -> None:
    try:
        lock = lock_entry(path, _busy)
    except OSError:  # BlockingIOError among them
        return
    if lock is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _busy() -> None:
    raise BlockingIOError
