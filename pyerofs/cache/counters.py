"""What has happened to a cache since it was made, by all processes together: `counters`, a file of JSON in it.

It is for monitoring only: where it cannot be read it begins anew, and where it cannot be written nothing is counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import NamedTuple

from .files import open_file

NAME = "counters"
_MAX = 1 << 16  # bytes


class Counters(NamedTuple):
    """`evictions`: entries that left to make room, with `evicted_bytes`; `conversions`: images made native."""

    evictions: int = 0
    evicted_bytes: int = 0
    conversions: int = 0


def read(directory: str) -> Counters:
    """Return the counters of a cache directory. Any process."""
    try:
        with open(open_file(os.path.join(directory, NAME), os.O_RDONLY), "rb") as file:
            return _parse(file.read(_MAX))
    except OSError:
        return Counters()


def add(directory: str, more: Counters) -> None:
    """Add to the counters of a cache directory. Any process and thread."""
    with contextlib.suppress(OSError):
        descriptor = open_file(os.path.join(directory, NAME), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            before = _parse(os.pread(descriptor, _MAX, 0))
            now = Counters(*(old + new for old, new in zip(before, more, strict=True)))
            data = json.dumps(now._asdict()).encode() + b"\n"
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
        finally:
            os.close(descriptor)


def _parse(data: bytes) -> Counters:
    try:
        found = json.loads(data)
        return Counters(*(max(0, int(found.get(name, 0))) for name in Counters._fields))
    except (ValueError, TypeError, AttributeError):
        return Counters()
