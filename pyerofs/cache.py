"""The cache: for each digest a directory with the blob's bytes, their sums and two maps of which of them are there.

    DIRECTORY/KIND/HEX/
        data    the blob's bytes at their offsets, sparse; then, page-aligned, a seal that names this very file
        sums    a CRC32C for each granule, written after the granule's bytes and before its bit
        live    the map in use, shared in memory by every process that has the blob open; claims are locks on it
        map     the durable map: a copy of the live one made after data and sums had been synced
        lock    held while an entry is opened, made or removed, never for long; its mtime is the entry's last use
        index   the chunk index that vouches for the bytes, where they have one
        verified    there when the whole blob has been hashed: the seal of the data file that has the right digest

KIND/HEX is sha256 or sha512 and the blob's digest for bytes as they are in the blob; sha256+zstd and the blob's digest
for what is decompressed of it; sha256+chunks and a chunk index's digest for bytes each of which has been checked
against that index before it was put here.

The rules that keep it from ever handing out a wrong byte:
1. Maps and sums are believed only with the seal (a random number) of the data file beside them. A data file that was
   cut short, replaced or zeroed while nobody had it open has lost its seal, so all are dropped and made anew.
2. The live map tells what is in the page cache. It is believed only in the boot that it was made in.
3. The durable map is written in this order: copy the live map, fdatasync the data and the sums, write the map under
   another name, fsync, rename. A machine that stops in between has the previous map.
4. Whatever is not believed is unlinked and made under a new inode: those who still use the old one lose nothing.
5. `data` is flocked, shared, by everybody who uses it. Whoever removes an entry (cachedir.py) holds its lock, and
   removes the lock last: a lock that is not there any more under its name is worth nothing.
6. A granule is compared with its sum before it is sent (csrc/store/checked.h). One that was spoiled is fetched anew,
   and so is what a data file lacks that was cut short; sync() then writes the seal again.

A disk that is full, read-only or broken is no reason to fail: what cannot be written is not cached. Where not even the
files of an entry can be made, memory files stand in for them, which never hold anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from hashlib import sha256
from typing import TYPE_CHECKING

from .core import GRANULE
from .entrylock import lock_entry
from .errors import SystemFailure, UsageError

if TYPE_CHECKING:
    from .core import Store
    from .options import OCIOptions

MAP_OFFSET = 4096  # where the bits begin in both maps, and the sums in theirs: behind a page
SHARED_OFFSET = 2048  # from here to the bits the live map's page is the C core's (csrc/store/bitmap.h)
SEAL = struct.Struct("<16s16sQ")  # magic, seal, size of the blob
SEAL_MAGIC = b"pyerofs data 1\n\0"
HEADER = struct.Struct("<16s16s16sQ32s")  # magic, seal, boot, size, SHA-256 of the bits (durable map only)
HEADER_MAGIC = b"pyerofs map 2\n\0\0"
SUMS_MAGIC = b"pyerofs sums 1\n\0"
VERIFIED_MAGIC = b"pyerofs good 1\n\0"  # in a SEAL
NO_CHECKSUM = bytes(32)
NO_BOOT = bytes(16)
# What a disk says that will do again some day: not the fault of whoever chose the directory.
NOT_NOW = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS))


def default_directory() -> str:
    """/var/cache/pyerofs for root; $XDG_CACHE_HOME/pyerofs or ~/.cache/pyerofs for others."""
    if os.geteuid() == 0:
        return "/var/cache/pyerofs"
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pyerofs")


def chosen_directory(options: OCIOptions) -> str:
    return options.cache or default_directory()


def entry_path(directory: str, key: str) -> str:
    """The entry's directory for what Storage calls its key."""
    algorithm, _, hexadecimal = key.partition(":")
    return os.path.join(directory, algorithm, hexadecimal)


def _boot() -> bytes:
    with open("/proc/sys/kernel/random/boot_id", "rb") as f:
        return bytes.fromhex(f.read().decode().strip().replace("-", ""))


def make_directory(path: str) -> None:
    """A directory of the cache; one that is there must be safe. Raises UsageError, OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    check_directory(path)


def check_directory(path: str) -> None:
    """Raises UsageError where somebody else could have put something into it; OSError."""
    found = os.stat(path)
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"cache directory {path}: it must belong to you and be writable by nobody else "
            f"(chown and chmod 700 it, or choose another one with oci.cache=DIR)"
        )


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Entry:
    """One digest's place in the cache, open. Owns `data_fd`, `map_fd`, `sums_fd`; not thread-safe but for sync().

    `problem`: None, or the text of the error for which nothing of it is kept on disk.
    """

    def __init__(self, directory: str, key: str, size: int):
        """Opens the entry or makes it. UsageError: a directory that will not do; SystemFailure: no memory for it."""
        self._begin(entry_path(directory, key), size)
        try:
            make_directory(directory)
            make_directory(os.path.dirname(self.path))
            while (lock := self._lock()) is None:
                pass  # it was evicted between the two steps
            try:
                self._open()
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
            raise SystemFailure(where) from None

    @classmethod
    def look(cls, path: str) -> Entry | None:
        """What there is at `path`, whose lock the caller holds; None: nothing that can be believed. It makes nothing,
        and is not in use by this. Raises OSError."""
        entry = cls.__new__(cls)
        try:
            with open(os.path.join(path, "data"), "rb") as f:
                end = os.fstat(f.fileno()).st_size
                trailer = os.pread(f.fileno(), SEAL.size, max(0, end - SEAL.size))
        except (FileNotFoundError, IsADirectoryError):
            return None
        if len(trailer) < SEAL.size:
            return None
        entry._begin(path, SEAL.unpack(trailer)[2])
        if entry._seal_offset + SEAL.size != end:
            return None
        seal = entry._open_data()
        if seal is None:
            return None
        entry._seal = seal
        entry._open_live()
        return entry

    def _begin(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self.data_fd = self.map_fd = self.sums_fd = -1
        self.problem: str | None = None
        self._granules = (size + GRANULE - 1) // GRANULE
        self._map_bytes = (self._granules + 63) // 64 * 8
        self._seal = b""
        self._synced: bytes | None = None

    def _lock(self) -> int | None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, mode=0o700)
        return lock_entry(self.path)

    def _open(self) -> None:
        self._seal = self._open_data() or self._make_data()
        fcntl.flock(self.data_fd, fcntl.LOCK_SH)  # "in use", for whoever wants to evict it
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
            raise SystemFailure(f"no memory for the cache's map: {e.strerror}") from None

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _drop(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file(name))

    @property
    def _seal_offset(self) -> int:
        return (self.size + GRANULE - 1) // GRANULE * GRANULE

    def _open_data(self) -> bytes | None:
        """The seal of the data file; None when there is none that can be believed."""
        try:
            fd = os.open(self._file("data"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        trailer = os.pread(fd, SEAL.size + 1, self._seal_offset)
        if len(trailer) == SEAL.size:
            magic, seal, size = SEAL.unpack(trailer)
            if magic == SEAL_MAGIC and size == self.size:
                self.data_fd = fd
                return bytes(seal)
        os.close(fd)
        return None

    def _make_data(self) -> bytes:
        self._drop("data", "live", "map", "verified")
        seal = os.urandom(16)
        self.data_fd = os.open(self._file("data"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.pwrite(self.data_fd, SEAL.pack(SEAL_MAGIC, seal, self.size), self._seal_offset)
        return seal

    def _trailer(self) -> bytes:
        return SEAL.pack(SEAL_MAGIC, self._seal, self.size)

    def _header(self, boot: bytes, checksum: bytes = NO_CHECKSUM, magic: bytes = HEADER_MAGIC) -> bytes:
        return HEADER.pack(magic, self._seal, boot, self.size, checksum).ljust(MAP_OFFSET, b"\0")

    def _sums_header(self) -> bytes:
        return self._header(NO_BOOT, magic=SUMS_MAGIC)

    def _open_sums(self) -> bool:
        """They need not be whole: what is not there agrees with nothing, and its granule is fetched anew."""
        try:
            fd = os.open(self._file("sums"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        if os.pread(fd, MAP_OFFSET, 0) == self._sums_header():
            self.sums_fd = fd
            return True
        os.close(fd)
        return False

    def _make_sums(self) -> None:
        self._drop("sums", "live", "map")  # without sums no map is worth anything
        self.sums_fd = os.open(self._file("sums"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        write_all(self.sums_fd, self._sums_header())
        os.truncate(self.sums_fd, MAP_OFFSET + 4 * self._granules)

    def _open_live(self) -> bool:
        try:
            fd = os.open(self._file("live"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        whole = os.fstat(fd).st_size == MAP_OFFSET + self._map_bytes
        if whole and os.pread(fd, SHARED_OFFSET, 0) == self._header(_boot())[:SHARED_OFFSET]:
            self.map_fd = fd
            return True
        os.close(fd)
        return False

    def _durable_bits(self) -> bytes:
        """The durable map's bits; none where it does not belong to this data file or is damaged."""
        try:
            with open(self._file("map"), "rb") as f:
                header, bits = f.read(MAP_OFFSET), f.read(self._map_bytes + 1)
        except OSError:
            return b""
        whole = len(bits) == self._map_bytes
        return bits if whole and header == self._header(NO_BOOT, sha256(bits).digest()) else b""

    def _make_live(self, bits: bytes) -> None:
        self._drop("live")
        try:
            self.map_fd = os.open(self._file("live"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
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
        # The header last: a process that dies before this leaves a map that nobody believes.
        os.pwrite(self.map_fd, self._header(_boot())[:SHARED_OFFSET], 0)

    def sync(self, store: Store) -> None:
        """Makes what is present now survive a crash of the machine. Raises OSError; the previous map is then kept."""
        self.touch()
        if self.problem:
            return
        if os.pread(self.data_fd, SEAL.size, self._seal_offset) != self._trailer():
            os.pwrite(self.data_fd, self._trailer(), self._seal_offset)  # the file was cut short
        bits = store.copy_map()
        if bits == self._synced or not self._is_listed():
            return
        os.fdatasync(self.data_fd)
        os.fdatasync(self.sums_fd)
        temporary = self._file(f"map.{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, self._header(NO_BOOT, sha256(bits).digest()) + bits)
            os.fsync(fd)
            os.rename(temporary, self._file("map"))
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        _sync_directory(self.path)
        self._synced = bits

    def touch(self) -> None:
        """It is being used."""
        with contextlib.suppress(OSError):  # at worst it is evicted too early
            os.utime(self._file("lock"))

    def _is_listed(self) -> bool:
        """Whether the name still leads to our data file: the durable map of another one is not ours to write."""
        try:
            return os.path.samestat(os.fstat(self.data_fd), os.stat(self._file("data")))
        except FileNotFoundError:
            return False

    def present(self) -> int:
        """Bytes of the blob that are there: of the live map where that is believed, else of the durable one."""
        live = self.map_fd >= 0
        bits = os.pread(self.map_fd, self._map_bytes, MAP_OFFSET) if live else self._durable_bits()
        number = int.from_bytes(bits, "little")
        granules = (self.size + GRANULE - 1) // GRANULE
        beyond = granules * GRANULE - self.size if number >> (granules - 1) & 1 else 0
        return number.bit_count() * GRANULE - beyond

    def is_marked_verified(self) -> bool:
        """Whether this very data file has been hashed. Worth nothing while the blob is not complete."""
        try:
            with open(self._file("verified"), "rb") as f:
                return f.read(SEAL.size + 1) == SEAL.pack(VERIFIED_MAGIC, self._seal, self.size)
        except OSError:
            return False

    def mark_verified(self) -> None:
        """Raises OSError. A mark that a crash leaves half written is none."""
        if self._is_listed():
            fd = os.open(self._file("verified"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                write_all(fd, SEAL.pack(VERIFIED_MAGIC, self._seal, self.size))
            finally:
                os.close(fd)

    def unmark_verified(self) -> None:
        """Raises OSError."""
        self._drop("verified")

    def close(self) -> None:
        for fd in (self.data_fd, self.map_fd, self.sums_fd):
            if fd >= 0:
                os.close(fd)
        self.data_fd = self.map_fd = self.sums_fd = -1
