"""Whose an entry of the cache is: its giver's until all of it has been hashed, then shared.

Bytes that nothing vouches for can be wrong, and who gave them may have wanted that: another registry that names the
same digest, a layout directory that has rotted. So they are kept for those who ask the same giver, and shared when the
whole has its digest. That digest is part of the shared key: what one manifest says of a layer counts for no
other image. Raises nothing: a cache that does not do costs time, not a mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from ..errors import PyerofsError
from .directory import EntryInfo, drop
from .entry import Entry
from .lock import lock_entry
from .paths import check_directory, entry_path, make_directory

if TYPE_CHECKING:
    from ..erofs.layer import Storage

TRIES = 10  # at a name that others make again and again


def open_entry(directory: str, storage: Storage, size: int) -> Entry:
    """Open the place for a source's bytes: the shared one, where it is whole and was hashed, or else its giver's.

    Raises UsageError, UnavailableError.
    """
    if not storage.shared:
        if storage.giver:
            _drop_disowned(directory, storage)
        return Entry(directory, storage.key, size, giver=storage.giver)
    entry = _open_shared(directory, storage, size)
    if entry is not None:
        return entry
    entry = Entry(directory, storage.key, size, earns=storage.shared, giver=storage.giver)
    # Another process may have shared it just now: ours is then empty.
    shared = _open_shared(directory, storage, size, tidy=False)
    if shared is None:
        return entry
    entry.close()
    return shared


def _open_shared(directory: str, storage: Storage, size: int | None, *, tidy: bool = True) -> Entry | None:
    """Open the shared entry, or return None.

    `tidy`: drop what can be believed no more, and the giver's entry that this one makes useless, unless they are in
    use.
    """
    path = entry_path(directory, storage.shared)
    useless = storage.key
    try:
        check_directory(directory)
        entry = Entry.open_believed(path, size)
        if entry is None:
            useless = storage.shared if _believed_size(path) is None else ""
    except (OSError, PyerofsError):
        return None
    if tidy:
        if useless:
            _drop(directory, useless)
        _drop_disowned(directory, storage)
    return entry


def _drop_disowned(directory: str, storage: Storage) -> None:
    """In earlier caches what came of a compressed layer lay under its digest, whatever it had been compared with."""
    key = storage.key.partition("@")[0]
    if "+zstd:" in key:
        _drop(directory, key)


def _drop(directory: str, key: str) -> None:
    with contextlib.suppress(PyerofsError):
        drop(EntryInfo(entry_path(directory, key), key, 0, 0.0))


def finished_size(directory: str, storage: Storage) -> int | None:
    """Return the size of what is whole and has been hashed; None where it is not.

    What an unfinished stream has left is dropped: nothing vouches for it.
    """
    entry = _open_shared(directory, storage, None)
    if entry is None:
        _drop(directory, storage.key)
        return None
    entry.close()
    return entry.size


def forget(entry: Entry) -> None:
    """Remove a giver's entry, which the caller has closed, unless others use it."""
    if entry.path != entry.shared_path:
        with contextlib.suppress(PyerofsError):
            drop(EntryInfo(entry.path, entry.earns, 0, 0.0))


def share(entry: Entry) -> bool:
    """Make an entry shared whose mark has been made.

    Return False where it stays its giver's, since there is one already.

    Those who have it open go on with it. Raises OSError, PyerofsError.
    """
    target = entry.shared_path
    if entry.path == target:
        return True
    lock = lock_entry(entry.path)
    if lock is None:
        return False
    try:
        if not entry.is_marked_verified() or entry.path == target:
            return entry.path == target
        make_directory(os.path.dirname(target))
        for _ in range(TRIES):
            if _believed_size(target) is not None:
                return False
            drop(EntryInfo(target, entry.earns, 0, 0.0), force=True)
            try:
                os.rename(entry.path, target)
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue  # another process has just begun to make it again
            entry.path = target
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(target, "giver"))
            return True
        return False
    finally:
        os.close(lock)


def _believed_size(path: str) -> int | None:
    """Of the shared entry, if there is one that can be believed; else None. Raises OSError."""
    lock = lock_entry(path)
    if lock is None:
        return None
    try:
        entry = Entry.look(path)
        if entry is None:
            return None
        try:
            return entry.size if entry.is_believed() else None
        finally:
            entry.close()
    finally:
        os.close(lock)
