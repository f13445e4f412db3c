"""Traces of starts, learned on this machine: by the name of the image without its tag, the newest kept.

They are hints: what is not there or cannot be read is as if it had never been.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

from ..files import atomic_write
from .files import read_file
from .paths import make_directory

NAME = "traces"
KEPT = 256
_SIZE_MAX = 4 << 20  # bytes of one


def _path(directory: str, name: str) -> str:
    return os.path.join(directory, NAME, hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32])


def find_trace(directory: str, name: str) -> bytes:
    """Return the trace that was learned of such images; b"" for none. `directory`: the cache's."""
    try:
        return read_file(_path(directory, name), _SIZE_MAX)
    except OSError:
        return b""


def keep_trace(directory: str, name: str, trace: bytes) -> None:
    """Keep a trace, and no more than KEPT of them. Raises OSError, UsageError."""
    if len(trace) > _SIZE_MAX:
        return
    where = os.path.join(directory, NAME)
    make_directory(where)
    atomic_write(_path(directory, name), trace)
    found = []
    for entry in os.scandir(where):
        with contextlib.suppress(OSError):
            found.append((entry.stat().st_mtime, entry.path))
    for _, path in sorted(found)[:-KEPT]:
        with contextlib.suppress(OSError):
            os.unlink(path)
