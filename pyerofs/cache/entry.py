"""The cache: places for blobs, each with the bytes, their sums and two maps of which of them are there.

    DIRECTORY/KIND/NAME/
        data    the blob's bytes at their offsets, sparse; then, page-aligned, a seal that names this very file
        sums    a CRC32C for each granule, written after the granule's bytes and before its bit
        live    the map in use, shared in memory by every process that has the blob open; claims are locks on it
        map     the durable map: a copy of the live one made after data and sums had been synced
        lock    held while an entry is opened, made, renamed or removed; its mtime is the entry's last use
        index   the layer's chunk index, where it has one
        chunks  the chunk map, of a tar layer that is read by its table of contents
        giver   who gives the bytes, as text, where nothing vouches for them yet
        verified, hashes    what the whole has been compared with, and a hash of each of its chunks (cache/mark.py)

Whose an entry is, its key KIND:NAME says (erofs/layer.py makes the keys, cache/sharing.py chooses between them):
    sha256:HEX              shared: the blob with this digest; it came here whole, and hashed
    sha256+zstd:HEX=CHAIN   shared by all who trust the same chain of digests for what this layer decompresses to
    sha256+chunks:HEX       shared: each chunk was checked against the index with this digest before it came here
    sha256+map:HEX          shared: so was each piece of it, by the chunk map of a tar layer with this digest
    KIND:HEX@WHO            as its giver has it: nothing vouches for it, so readers with another giver do not get it

The rules that keep it from ever handing out a wrong byte:
1. Maps and sums are believed only with the seal (a random number) of the data file beside them. A data file that was
   cut short, replaced or zeroed while it was not open has lost its seal, so all three are dropped and made again.
2. The live map tells what is in the page cache. It is believed only in the boot that it was made in.
3. The durable map is written in this order: copy the live map, fdatasync the data and the sums, write the map under
   another name, fsync, rename. A machine that stops in between has the previous map.
4. Whatever is not believed is unlinked and made under a new inode: those who still use the old one lose nothing.
5. `data` is flocked, shared, by every process that uses it. A remover of an entry (cache/directory.py) holds its lock,
   and removes the lock last: a lock that is not there any more under its name is worth nothing.
6. A granule is compared with its sum before it is sent (csrc/store/checked.h). One that was spoiled is fetched anew,
   and so is what a data file lacks that was cut short; sync() then writes the seal again.
7. An entry becomes shared by a rename, when all of it has the digest that its mark names. What it lacks later is
   put there only if it has the hash that it had then (source/checked.py).

A disk that is full, read-only or broken is no reason to fail: what cannot be written is not cached. Where not even the
files of an entry can be made, memory files stand in for them, which never hold anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from typing import TYPE_CHECKING

from ..errors import UnavailableError, UsageError
from ..files import atomic_write, write_all
from . import entry_format
from . import mark as entry_mark
from .entry_format import MAP_OFFSET
from .files import open_file, read_file, sync_directory
from .lock import lock_entry
from .paths import entry_path, make_directory, make_entry

if TYPE_CHECKING:
    from ..core import Store

# A disk's temporary errors: choosing another directory is not the way out.
NOT_NOW = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS))


class Entry:
    """A blob's place in the cache, open. Owns `data_fd`, `map_fd`, `sums_fd`.

    `problem`: None, or the text of the error for which nothing of it is kept on disk. `earns`: the key that the bytes
    have when all of them have been hashed. Not thread-safe but for sync() and what is about the mark.
    """

    def __init__(self, directory: str, key: str, size: int, *, earns: str = "", giver: str = ""):
        """Open the entry, or make it.

        `earns`: where that is not the key; `giver` of the bytes, for messages. Raises UsageError for a directory that
        will not do, UnavailableError where there is no memory for it.
        """
        self._begin(entry_path(directory, key), size)
        self.earns = earns or key
        try:
            make_directory(directory)
            make_directory(os.path.dirname(self.path))
            while (lock := self._lock()) is None:
                pass  # it was evicted between the two steps
            try:
                self._open()
                if giver and not os.path.lexists(self._file("giver")):
                    with contextlib.suppress(OSError):  # only shown, never used
                        atomic_write(self._file("giver"), giver.encode())
            finally:
                os.close(lock)
            self.touch()
        except OSError as e:
            self.close()
            if e.errno in NOT_NOW:
                self._open_nothing(e.strerror or str(e))
                return
            where = f"cache directory {directory}: {e.strerror or e}"
            if isinstance(e, PermissionError | NotADirectoryError | FileExistsError):
                raise UsageError(f"{where} (choose another one with oci.cache=DIR)") from None
            raise UnavailableError(where) from None

    @classmethod
    def look(cls, path: str) -> Entry | None:
        """Return the entry at `path`, whose lock the caller holds; None where nothing there can be believed.

        It makes nothing, and does not count as a user of the entry. Raises OSError.
        """
        entry = cls.__new__(cls)
        try:
            with open(open_file(os.path.join(path, "data"), os.O_RDONLY), "rb") as f:
                size = entry_format.stated_size(f.fileno())
        except OSError as e:
            if e.errno in NOT_NOW:
                raise
            return None
        if size is None:
            return None
        entry._begin(path, size)
        seal = entry._open_data()
        if seal is None:
            return None
        entry._seal = seal
        entry._open_live()
        return entry

    @classmethod
    def open_believed(cls, path: str, size: int | None = None) -> Entry | None:
        """Open the shared entry at `path`; None where it is missing, cannot be believed, or has another size.

        Raises OSError.
        """
        lock = lock_entry(path)
        if lock is None:
            return None
        try:
            entry = cls.look(path)
            if entry is None:
                return None
            good = size in (None, entry.size) and entry.is_believed()
            entry.close()
            if good:
                entry._open()
                good = entry.is_believed()  # without its sums nothing of it was
            if not good:
                entry.close()
                return None
        finally:
            os.close(lock)
        entry.touch()
        return entry

    def _begin(self, path: str, size: int) -> None:
        self.path = path
        kind, name = path.split(os.sep)[-2:]
        self.earns = f"{kind}:{name if '+' in kind else name.partition('@')[0]}"
        self.size = size
        self.data_fd = self.map_fd = self.sums_fd = -1
        self.problem: str | None = None
        self._granules = entry_format.granules(size)
        self._map_bytes = entry_format.map_bytes(size)
        self._seal = b""
        self._synced: bytes | None = None

    def _lock(self) -> int | None:
        make_entry(self.path)
        return lock_entry(self.path)

    def _open(self) -> None:
        self._seal = self._open_data() or self._make_data()
        fcntl.flock(self.data_fd, fcntl.LOCK_SH)  # marks it as in use, against eviction
        if not self._open_sums():
            self._make_sums()
        if not self._open_live():
            self._make_live(self._durable_bits())

    def _open_nothing(self, problem: str) -> None:
        """Memory files in which nothing is ever present: writing to the data, opened for reading only, must fail."""
        self.problem = problem
        self.map_fd = os.memfd_create("pyerofs-map", os.MFD_CLOEXEC)
        try:
            os.truncate(self.map_fd, MAP_OFFSET + self._map_bytes)
            data = os.memfd_create("pyerofs-data", os.MFD_CLOEXEC)
            try:
                self.data_fd = os.open(f"/proc/self/fd/{data}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(data)
        except OSError as e:
            self.close()
            raise UnavailableError(f"no memory for the cache's map: {e.strerror}") from None

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _drop(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file(name))

    def _open_data(self) -> bytes | None:
        """Return the seal of the data file; None where there is none that can be believed."""
        try:
            fd = open_file(self._file("data"), os.O_RDWR)
        except OSError:
            return None
        seal = entry_format.seal_of(fd, self.size)
        if seal is not None:
            self.data_fd = fd
            return seal
        os.close(fd)
        return None

    def _make_data(self) -> bytes:
        self._drop("data", "live", "map", entry_mark.NAME, entry_mark.HASHES)
        seal = os.urandom(16)
        self.data_fd = open_file(self._file("data"), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._write_seal(seal)
        return seal

    def _write_seal(self, seal: bytes) -> None:
        os.pwrite(self.data_fd, entry_format.trailer(seal, self.size), entry_format.seal_offset(self.size))

    def _open_sums(self) -> bool:
        """They need not be whole: what is not there agrees with nothing, and its granule is fetched anew."""
        try:
            fd = open_file(self._file("sums"), os.O_RDWR)
        except OSError:
            return False
        if os.pread(fd, MAP_OFFSET, 0) == entry_format.sums_header(self._seal, self.size):
            self.sums_fd = fd
            return True
        os.close(fd)
        return False

    def _make_sums(self) -> None:
        self._drop("sums", "live", "map")  # without sums no map is worth anything
        self.sums_fd = open_file(self._file("sums"), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        write_all(self.sums_fd, entry_format.sums_header(self._seal, self.size))
        os.truncate(self.sums_fd, MAP_OFFSET + 4 * self._granules)

    def _open_live(self) -> bool:
        try:
            fd = open_file(self._file("live"), os.O_RDWR)
        except OSError:
            return False
        whole = os.fstat(fd).st_size == MAP_OFFSET + self._map_bytes
        header = entry_format.live_header(self._seal, self.size)
        if whole and os.pread(fd, len(header), 0) == header:
            self.map_fd = fd
            return True
        os.close(fd)
        return False

    def _durable_bits(self) -> bytes:
        """Return the durable map's bits; none where it does not belong to this data file or is damaged."""
        try:
            found = read_file(self._file("map"), MAP_OFFSET + self._map_bytes + 1)
        except OSError:
            return b""
        return entry_format.durable_bits(found, self._seal, self.size)

    def _make_live(self, bits: bytes) -> None:
        self._drop("live")
        try:
            self.map_fd = open_file(self._file("live"), os.O_RDWR | os.O_CREAT | os.O_EXCL)
            # It will be mapped: a hole that could not be filled on a full disk would be a SIGBUS.
            os.posix_fallocate(self.map_fd, 0, MAP_OFFSET + self._map_bytes)
        except OSError as e:
            if e.errno not in NOT_NOW:
                raise
            if self.map_fd >= 0:
                os.close(self.map_fd)
            # What is in the cache is good all the same; only, no other process sees this map.
            self.map_fd = os.memfd_create("pyerofs-map", os.MFD_CLOEXEC)
            os.truncate(self.map_fd, MAP_OFFSET + self._map_bytes)
        os.pwrite(self.map_fd, bits, MAP_OFFSET)
        # The header last: a process that dies before this leaves a map that is not believed.
        os.pwrite(self.map_fd, entry_format.live_header(self._seal, self.size), 0)

    def sync(self, store: Store) -> None:
        """Make what is present now survive a crash of the machine.

        Raises OSError; the previous map is then kept.
        """
        self.touch()
        if self.problem:
            return
        if entry_format.seal_of(self.data_fd, self.size) != self._seal:
            self._write_seal(self._seal)  # the file was cut short
        bits = store.copy_map()
        if bits == self._synced or not self._is_listed():
            return
        os.fdatasync(self.data_fd)
        os.fdatasync(self.sums_fd)
        atomic_write(self._file("map"), entry_format.durable_map(self._seal, self.size, bits), durable=True)
        sync_directory(self.path)
        self._synced = bits

    def touch(self) -> None:
        """Mark the entry as used now."""
        with contextlib.suppress(OSError):  # at worst it is evicted too early
            if self._is_listed():
                os.utime(self._file("lock"), follow_symlinks=False)

    def _is_listed(self) -> bool:
        """Tell whether a name still leads to our data file: the durable map of another one is not ours to write.

        Another process may have made it shared.
        """
        ours = os.fstat(self.data_fd)
        for path in (self.path, self.shared_path):
            with contextlib.suppress(OSError):
                if os.path.samestat(ours, os.stat(os.path.join(path, "data"))):
                    self.path = path
                    return True
        return False

    @property
    def shared_path(self) -> str:
        """Where it is, or will be, when all of it has been hashed."""
        kind, _, name = self.earns.partition(":")
        return os.path.join(os.path.dirname(os.path.dirname(self.path)), kind, name)

    def present(self) -> int:
        """Bytes of the blob that are there: of the live map where that is believed, else of the durable one."""
        live = self.map_fd >= 0
        bits = os.pread(self.map_fd, self._map_bytes, MAP_OFFSET) if live else self._durable_bits()
        return entry_format.bytes_present(bits, self.size)

    def _mark(self) -> entry_mark.Mark | None:
        """Return the mark, if it is for what these bytes are to be.

        One of an earlier version says only that they have been hashed: that was to the digest by which an entry is
        named, unless they were decompressed.
        """
        path = self.path
        mark = entry_mark.read(path, self._seal, self.size)
        if mark is None and self._is_listed() and self.path != path:
            mark = entry_mark.read(self.path, self._seal, self.size)
        if mark is None:
            return None
        if not mark.key:
            plain = re.fullmatch(r"sha\d+:[0-9a-f]+", self.earns) and self.path == self.shared_path
            return mark if plain else None
        return mark if mark.key == self.earns or "@" in self.earns else None  # "@": looked at, not used

    def is_marked_verified(self) -> bool:
        """Tell whether this very data file has been hashed to what it is to be.

        Where it is not complete any more: whether the bytes that are there have.
        """
        return self._mark() is not None

    def marked_at(self) -> float | None:
        """When the mark was made, in seconds since 1970; None: there is none."""
        mark = self._mark()
        return mark.made if mark else None

    def hashes(self) -> bytes:
        """Return a chunk index of the bytes that were hashed; nothing where there is no mark, or one without that."""
        mark = self._mark()
        return entry_mark.hashes(self.path, mark) if mark else b""

    def is_believed(self) -> bool:
        """Tell whether every reader that wants what the key names may read it.

        So it is with shared entries whose bytes all have been hashed, and can be checked one by one where some are
        missing.
        """
        return self.is_marked_verified() and (self.present() == self.size or bool(self.hashes()))

    def mark_verified(self, hashes: bytes = b"") -> None:
        """All of it has been hashed to what it is to be. Raises OSError."""
        if self._is_listed():
            entry_mark.write(self.path, self._seal, self.size, self.earns, hashes)

    def unmark_verified(self) -> None:
        """Remove the mark. Raises OSError."""
        if self._is_listed():
            self._drop(entry_mark.NAME, entry_mark.HASHES)

    def close(self) -> None:
        for fd in (self.data_fd, self.map_fd, self.sums_fd):
            if fd >= 0:
                os.close(fd)
        self.data_fd = self.map_fd = self.sums_fd = -1
