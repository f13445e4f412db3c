"""The mark of an entry that has been hashed: which data file it is about, and what that was compared with.

    verified    seal and size of the data file, SHA-256 of `hashes`, then the key that the bytes have earned
    hashes      a chunk index of the data file, made in the same pass that hashed all of it

For any other key the mark does not count. What is missing in a marked entry later is fetched by any
process that has the entry open, from its giver, so it is checked against `hashes` before it is put there.
"""

from __future__ import annotations

import contextlib
import os
import struct
from hashlib import sha256
from typing import NamedTuple

from ..files import atomic_write
from .files import open_file, read_file

NAME, HASHES = "verified", "hashes"
_MARK = struct.Struct("<16s16sQ32s")  # magic, seal, size of the blob, SHA-256 of `hashes`
_MAGIC = b"pyerofs good 2\n\0"
_OLD = struct.Struct("<16s16sQ")  # it said only that the data file has been hashed
_OLD_MAGIC = b"pyerofs good 1\n\0"
_KEY_MAX = 300  # bytes
_HASHES_MAX = 1 << 30  # bytes


class Mark(NamedTuple):
    """What a mark says.

    `key` that the bytes have earned; `sum`: of `hashes`; "" for a mark that says neither. `made`: when, in seconds
    since 1970.
    """

    key: str
    sum: bytes
    made: float


def read(path: str, seal: bytes, size: int) -> Mark | None:
    """Return the mark of the entry at `path`; None where there is none for the data file with this seal and size."""
    try:
        with open(open_file(os.path.join(path, NAME), os.O_RDONLY), "rb") as file:
            found = file.read(_MARK.size + _KEY_MAX)
            made = os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    if found == _OLD.pack(_OLD_MAGIC, seal, size):
        return Mark("", b"", made)
    about = found[: _MARK.size]
    total = about[-32:]
    if about != _MARK.pack(_MAGIC, seal, size, total):
        return None
    return Mark(found[_MARK.size :].decode(errors="replace"), total, made)


def write(path: str, seal: bytes, size: int, key: str, hashes: bytes) -> None:
    """Write the mark so that it survives a crash of the machine: without it no shared entry is believed.

    Raises OSError.
    """
    atomic_write(os.path.join(path, HASHES), hashes, durable=True)
    mark = _MARK.pack(_MAGIC, seal, size, sha256(hashes).digest()) + key.encode()
    atomic_write(os.path.join(path, NAME), mark, durable=True)


def hashes(path: str, mark: Mark) -> bytes:
    """Return what the mark vouches for chunk by chunk; nothing where that is lost."""
    with contextlib.suppress(OSError):
        found = read_file(os.path.join(path, HASHES), _HASHES_MAX)
        if sha256(found).digest() == mark.sum:
            return found
    return b""
