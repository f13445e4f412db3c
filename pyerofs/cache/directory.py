"""A cache directory as a whole: what is in it, and how entries leave it. What an entry is, cache/entry.py says.

Nothing here disturbs a process that uses an entry. Every call may be made from any thread of any process at any time;
where two remove at once, each finds the other's work done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UnavailableError, UsageError
from . import counters
from .entry import Entry
from .files import open_file, read_file
from .lock import lock_entry
from .paths import check_directory, entry_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..quantity import Limit

CHUNKS, ZSTD, MAP = "+chunks", "+zstd", "+map"
_KINDS = {
    algorithm + kind: re.compile(rf"[0-9a-f]{{{digits}}}([@=][0-9a-f]{{32}})?")
    for algorithm, digits in (("sha256", 64), ("sha512", 128))
    for kind in ("", CHUNKS, ZSTD, MAP)
}
_GIVER_MAX = 4096  # bytes
PREFIX_MIN = 6  # hex digits of a digest that may stand for all of them


class EntryInfo(NamedTuple):
    """One entry's directory.

    `digest`: KIND:HEX, as cache/entry.py has it, without whose it is; the blob's digest where it is kept as it came.
    `disk`: bytes that all of its files occupy; `used`: its last use, in seconds since 1970.
    """

    path: str
    digest: str
    disk: int
    used: float

    @property
    def giver(self) -> str:
        """The giver whose readers it is for; "" if it is shared."""
        if not self.is_given:
            return ""
        try:
            return read_file(os.path.join(self.path, "giver"), _GIVER_MAX).decode(errors="replace")
        except OSError:
            return "?"

    @property
    def is_given(self) -> bool:
        """Whether it is as its giver has it, not shared."""
        return "@" in os.path.basename(self.path)

    @property
    def hexadecimal(self) -> str:
        return self.digest.partition(":")[2]

    @property
    def kind(self) -> str:
        """ "" for a blob as it came; CHUNKS, MAP for what was verified piece by piece before it was put there; ZSTD."""
        algorithm = self.digest.partition(":")[0]
        return algorithm[algorithm.find("+") :] if "+" in algorithm else ""


class Contents(NamedTuple):
    """What an entry holds. `size` and `present` in bytes. `broken`: nothing of it can be believed, or will be."""

    size: int = 0
    present: int = 0
    in_use: bool = False
    verified: bool = False
    broken: bool = False

    @property
    def complete(self) -> bool:
        return not self.broken and self.present == self.size


class Removed(NamedTuple):
    """`freed`: the entries that left, the least recently used first; `left`: bytes on disk of those that stayed."""

    freed: list[EntryInfo]
    left: int


@contextlib.contextmanager
def _naming(directory: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        error = UsageError if isinstance(e, PermissionError | NotADirectoryError) else UnavailableError
        raise error(f"cache directory {directory}: {e.strerror or e}") from None


def scan(directory: str) -> list[EntryInfo]:
    """Return every entry, the least recently used first.

    There are none where there is no such directory. Raises UsageError, UnavailableError.
    """
    found = []
    with _naming(directory):
        if os.path.lexists(directory):
            check_directory(directory)
        for algorithm, pattern in _KINDS.items():
            for name in _names(os.path.join(directory, algorithm)):
                path = os.path.join(directory, algorithm, name)
                if pattern.fullmatch(name) and (place := _measure(path, f"{algorithm}:{re.split('[@=]', name)[0]}")):
                    found.append(place)
    return sorted(found, key=lambda place: place.used)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _measure(path: str, digest: str) -> EntryInfo | None:
    """None: it has gone."""
    try:
        used = os.lstat(path).st_mtime  # of a directory whose maker has not got as far as the lock
    except FileNotFoundError:
        return None
    disk = 0
    for name in _names(path):
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(os.path.join(path, name))
            disk += found.st_blocks * 512
            if name == "lock":
                used = found.st_mtime
    return EntryInfo(path, digest, disk, used)


def describe(place: EntryInfo) -> Contents | None:
    """Return what is in the entry; None where it has gone. Raises UsageError, UnavailableError."""
    with _naming(place.path):
        lock = lock_entry(place.path)
        if lock is None:
            return None
        try:
            entry = Entry.look(place.path)
            if entry is None:
                return Contents(in_use=_in_use(place.path), broken=True)
            try:
                present, in_use = entry.present(), _in_use(place.path)
                checked = place.kind in (CHUNKS, MAP) or entry.is_marked_verified()
                believed = place.kind in (CHUNKS, MAP) or place.is_given or entry.is_believed()
                return Contents(
                    entry.size, present, in_use, present == entry.size and checked, not (believed or in_use)
                )
            finally:
                entry.close()
        finally:
            os.close(lock)


def describe_key(directory: str, key: str) -> Contents | None:
    """Return what is kept under this key (KIND:HEX); None for nothing. Raises as describe()."""
    return describe(EntryInfo(entry_path(directory, key), key, 0, 0.0))


def hold(place: EntryInfo) -> Entry | None:
    """Open the entry as it is, in use by the caller until its close().

    None where it has gone or is broken. Raises UsageError, UnavailableError.
    """
    with _naming(place.path):
        lock = lock_entry(place.path)
        if lock is None:
            return None
        try:
            entry = Entry.look(place.path)
            if entry is not None:
                fcntl.flock(entry.data_fd, fcntl.LOCK_SH)
            return entry
        finally:
            os.close(lock)


def _in_use(path: str) -> bool:
    """Whether a process has the data file open for use. The entry's lock is held, so none begins to."""
    try:
        fd = open_file(os.path.join(path, "data"), os.O_RDONLY)
    except OSError:
        return False  # an opener would make another one
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def drop(place: EntryInfo, *, force: bool = False) -> bool:
    """Remove the entry; return False where it is in use.

    With `force` it goes all the same, and its users keep what they have. True as well when another process has removed
    it. Raises UsageError, UnavailableError.
    """
    with _naming(place.path):
        lock = lock_entry(place.path)
        if lock is None:
            return True
        try:
            if not force and _in_use(place.path):
                return False
            for name in _names(place.path):
                if name != "lock":
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(place.path, name))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(place.path, "lock"))
            # A process that arrives now has made a new lock in it, or will make a new directory.
            with contextlib.suppress(OSError):
                os.rmdir(place.path)
            return True
        finally:
            os.close(lock)


def evict(directory: str, limit: int) -> Removed:
    """Drop the least recently used entries that are not in use, until at most `limit` bytes are left on disk."""
    places = scan(directory)
    left = sum(place.disk for place in places)
    freed = []
    for place in places:
        if left <= limit:
            break
        if drop(place):
            freed.append(place)
            left -= place.disk
    if freed:
        counters.add(directory, counters.Counters(len(freed), sum(place.disk for place in freed)))
    return Removed(freed, left)


def limit_in(directory: str, limit: Limit) -> int:
    """Return the limit in bytes, on the filesystem of the directory, which exists.

    Raises UsageError, UnavailableError.
    """
    with _naming(directory):
        found = os.statvfs(directory)
    return limit.of(found.f_blocks * found.f_frsize)


def find_entry(places: list[EntryInfo], text: str) -> list[EntryInfo]:
    """Return the entries with this digest, or with these first hex digits of one: the shared one, and each giver's.

    Raises UsageError.
    """
    if not re.fullmatch(rf"(?:sha(?:256|512)(?:\+chunks|\+zstd)?:)?[0-9a-f]{{{PREFIX_MIN},128}}", text):
        raise UsageError(f"{text!r} is not a digest: write all of it, or at least {PREFIX_MIN} of its hex digits")
    found = [place for place in places if place.digest.startswith(text) or place.hexadecimal.startswith(text)]
    if not found:
        raise UsageError(f"the cache has no blob {text} (`pyerofs cache ls` shows what it has)")
    if (count := len({place.digest for place in found})) > 1:
        raise UsageError(f"{text} stands for {count} blobs in the cache: write more digits")
    return found
