"""Where the cache is, and where in it an entry is."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..files import remove_directories, xdg

if TYPE_CHECKING:
    from ..config.options import ReadOptions


def default_directory() -> str:
    """Return /var/cache/pyerofs for root; $XDG_CACHE_HOME/pyerofs or ~/.cache/pyerofs for others. Raises UsageError."""
    if os.geteuid() == 0:
        return "/var/cache/pyerofs"
    directory = xdg(os.environ, os.geteuid(), "XDG_CACHE_HOME", ".cache")
    if directory is None:
        raise UsageError("this user has no home directory: give oci.cache=DIR, or set HOME or XDG_CACHE_HOME")
    return os.path.join(directory, "pyerofs")


def chosen_directory(options: ReadOptions) -> str:
    return options.cache or default_directory()


def entry_path(directory: str, key: str) -> str:
    """Return the directory of the entry with this key (Storage.key)."""
    algorithm, _, hexadecimal = key.partition(":")
    return os.path.join(directory, algorithm, hexadecimal)


def make_directory(path: str) -> None:
    """Make a directory of the cache; an existing one must be safe. Raises UsageError, OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    check_directory(path)


def make_entry(path: str) -> None:
    """Make an entry's directory, unless it is there. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode=0o700)
    remove_directories(path)  # made by mistake: no file of ours could take their place


def check_directory(path: str) -> None:
    """Raise UsageError if another user could have written to the directory. Raises OSError."""
    found = os.stat(path)
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"cache directory {path}: it must belong to you and be writable only by you "
            f"(chown and chmod 700 it, or choose another one with oci.cache=DIR)"
        )
