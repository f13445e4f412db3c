"""Entries of the cache made of files that are there whole: each byte has been hashed, none is copied.

What is written is what landing would have written, in the same order of belief: sums, seal, and last a live map with
all bits set. It is durable like any other entry once its first user has synced it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from . import mark
from .entry import Entry
from .entry_format import MAP_OFFSET
from .files import open_file
from .lock import lock_entry
from .paths import entry_path, make_directory

if TYPE_CHECKING:
    from ..erofs.device_file import DeviceFile


def adopt(directory: str, key: str, device: DeviceFile) -> bool:
    """Make the file the entry `key` of the cache; return False where others use one that is not whole.

    The entry's bytes are those of `device`, whose file is moved there. It takes the place even of one that looks whole,
    which may have been spoiled, while these bytes have just been hashed; but one that others use stays. Raises OSError,
    UsageError.
    """
    path = entry_path(directory, key)
    make_directory(directory)
    make_directory(os.path.dirname(path))
    lock = None
    while lock is None:  # it was evicted between the two steps
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode=0o700)
        lock = lock_entry(path)
    try:
        there = Entry.look(path)
        if there is not None:
            try:
                if not _is_unused(there):
                    return there.size == device.size and there.present() == there.size
            finally:
                there.close()
        _make_whole(path, device)
        return True
    finally:
        os.close(lock)


def _is_unused(entry: Entry) -> bool:
    try:
        fcntl.flock(entry.data_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_whole(path: str, device: DeviceFile) -> None:
    entry = Entry.__new__(Entry)
    entry._begin(path, device.size)
    try:
        entry._drop("data", "sums", "live", "map", "index", mark.NAME, mark.HASHES)
        device.move(entry._file("data"))
        entry.data_fd = open_file(entry._file("data"), os.O_RDWR)
        entry._seal = os.urandom(16)
        entry._write_seal(entry._seal)
        entry._make_sums()
        os.pwrite(entry.sums_fd, device.sums.tobytes(), MAP_OFFSET)
        bits = (1 << entry._granules) - 1
        entry._make_live(bits.to_bytes(entry._map_bytes, "little"))
    finally:
        entry.close()
