"""Verifying: a blob that is complete is hashed once, and is from then on known to be what its digest says.

    unverified -> verifying -> verified     it is so until something is fetched again
                           \\-> mismatch     everything is dropped, fetched and hashed again, but only once:
                                           a second mismatch stays one
                           \\-> unverified   where granules do not agree with their sums: those alone are forgotten

The mark lies in the cache beside the data file that it is about, with a hash of each chunk: what is missing in it
later comes back only with that hash, so nothing has to be hashed again. With the mark the entry becomes shared.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING, Literal

from ..cache.sharing import share
from ..erofs import chunk_index
from ..errors import PyerofsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..cache.entry import Entry
    from ..core import Store

State = Literal["unverified", "verifying", "verified", "mismatch"]
CHUNK = 1 << 20  # bytes between two looks at whether to stop
CHUNKS_MAX = 1 << 20  # of which one is fetched where a byte is damaged: larger ones for blobs beyond 128 GiB
MISMATCHES_MAX = 2
SETTLING = 0.1  # seconds that the data file must have been left alone, for its bytes to be trusted
NICE = 19


def digest_of(
    fd: int, size: int, algorithm: str, cancel: Callable[[], bool], each: Callable[[memoryview], None] | None = None
) -> str | None:
    """Return the digest of a file's first `size` bytes, as `algorithm:hex`; None when cancelled.

    `each` gets every piece of CHUNK bytes, and the last one, as it was hashed. Raises OSError.
    """
    state = hashlib.new(algorithm)
    buffer = memoryview(bytearray(min(CHUNK, size)))
    at = 0
    while at < size:
        if cancel():
            return None
        count = _fill(fd, buffer[: size - at], at)
        if not count:
            break  # cut short: no digest of it is the right one
        state.update(buffer[:count])
        if each:
            each(buffer[:count])
        at += count
    return f"{algorithm}:{state.hexdigest()}"


def _fill(fd: int, buffer: memoryview, at: int) -> int:
    done = 0
    while done < len(buffer) and (count := os.preadv(fd, [buffer[done:]], at + done)):
        done += count
    return done


def hash_all(fd: int, size: int, algorithm: str, cancel: Callable[[], bool]) -> tuple[str, bytes] | None:
    """Return the digest, and a chunk index of the same bytes; None when cancelled. Raises OSError."""
    hashes: list[bytes] = []
    step = chunk_index.CHUNK_SIZE
    while size // step > CHUNKS_MAX and step < CHUNK:
        step *= 2

    def each(piece: memoryview) -> None:
        hashes.extend(hashlib.sha256(piece[at : at + step]).digest() for at in range(0, len(piece), step))

    digest = digest_of(fd, size, algorithm, cancel, each)
    if digest is None:
        return None
    entries = ((number * step, number * step, found) for number, found in enumerate(hashes))
    return digest, chunk_index.encode(chunk_index.NONE, size, entries)


class DigestCheck:
    """Hashes a blob that has become complete. Thread-safe. Owns a thread while it hashes.

    `digest` tells what the blob must have, None while that is not known; `sync` makes the cache durable, `log` gets a
    line for the user; both are called from that thread.
    """

    def __init__(
        self,
        entry: Entry,
        store: Store,
        digest: Callable[[], str | None],
        sync: Callable[[], None],
        log: Callable[[str], None],
    ):
        self._entry = entry
        self._store = store
        self._digest = digest
        self._sync = sync
        self._log = log
        self._lock = threading.Lock()
        self._state: State = "unverified"
        self._mismatches = 0
        self._healed = 0  # granules found spoiled before the hashing began
        self._changed = False  # something has been fetched since the hashing began
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def state(self) -> State:
        """As this process knows it or, where another one has done the work, as the mark in the cache says."""
        state = self._state
        return "verified" if state == "unverified" and self._is_marked() else state

    def start(self) -> None:
        """Start hashing a blob that was complete when it was opened, unless it has its mark."""
        with self._lock:
            if self._is_marked():
                self._state = "verified"
                if self._entry.hashes():
                    self._share()  # the process that made the mark may have been killed then
                else:
                    self._begin()  # of an earlier version: what is lost of it later could not be checked
            else:
                self._look()

    def landed(self) -> None:
        """Something has been fetched."""
        with self._lock:
            self._changed = True
            self._look()

    def wait(self, seconds: float) -> None:
        """Until what is complete has been hashed, but no longer than that."""
        deadline = time.monotonic() + seconds
        with self._lock:
            if self._state == "unverified" and not self._is_marked():
                self._begin()
        while True:  # what lands meanwhile has it begin anew
            with self._lock:
                thread = self._thread if self._state == "verifying" else None
            left = deadline - time.monotonic()
            if thread is None or left <= 0:
                return
            thread.join(left)

    def stop(self) -> None:
        """Give up what is under way."""
        self._stopping.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _is_complete(self) -> bool:
        return self._store.has(0, self._store.size)

    def _is_marked(self) -> bool:
        return self._is_complete() and self._entry.is_marked_verified()

    def _look(self) -> None:
        """Something is new: what is to be done? The lock is held."""
        if self._state == "verifying" or self._mismatches == MISMATCHES_MAX:
            return
        marked = self._entry.is_marked_verified()
        if marked and self._entry.hashes():  # what comes now is checked by them before it is there
            self._state = "verified" if self._is_complete() else "unverified"
            return
        if self._state == "verified":
            self._state = "unverified"
        if marked:
            self._unmark()  # or the next one to open it would believe what was true before
        self._begin()

    def _unmark(self) -> None:
        try:
            self._entry.unmark_verified()
        except OSError as e:
            self._log(f"cannot remove a mark from the cache: {e.strerror}")

    def _begin(self) -> None:
        """Hashes what is complete. The lock is held."""
        self._healed = self._store.health()[1]
        digest = self._digest()
        if digest and self._is_complete() and not self._stopping.is_set():
            self._state = "verifying"
            self._changed = False
            self._thread = threading.Thread(target=self._verify, args=(digest,), name="pyerofs-verify", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no memory for a thread; it is tried again when something has landed
                self._thread, self._state = None, "unverified"

    def _verify(self, digest: str) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # on Linux: of this thread alone
        algorithm = digest.partition(":")[0]
        epoch = self._epoch()
        try:
            done = hash_all(
                self._entry.data_fd, self._store.size, algorithm, lambda: self._stopping.is_set() or self._changed
            )
        except OSError as e:
            self._log(f"cannot verify {digest}: {e.strerror}")
            done = None
        found, hashes = done or (None, b"")
        damaged = found not in (None, digest) and not self._is_sound(digest)
        # Before a mark is made: in a crash of the machine it must not outlive the bytes that it was made for.
        self._sync()
        with self._lock:
            if found == digest and not (self._changed or self._stopping.is_set()):
                self._store.trust(epoch)
                self._matched(digest, hashes)
                return
            self._state = "unverified"
            if self._stopping.is_set():
                return
            if self._changed or damaged:
                self._look()
            elif found is not None:
                self._mismatched(digest, found)
        self._sync()  # what was forgotten

    def _epoch(self) -> int:
        """For Store.trust(): a reader whose bytes have been hashed need not have them compared as well."""
        self._store.epoch()
        self._stopping.wait(SETTLING)
        return self._store.epoch()

    def _is_sound(self, digest: str) -> bool:
        """Tell whether the bytes that were hashed are those that came from the registry, as far as their sums tell.

        What is not is absent from now on: it is fetched anew when it is wanted, and all is hashed again.
        """
        try:
            return self._store.check(0, self._store.size) and self._store.health()[1] == self._healed
        except OSError as e:
            self._log(f"cannot check the cache of {digest}: {e.strerror}")
            return False

    def _matched(self, digest: str, hashes: bytes) -> None:
        try:
            self._entry.mark_verified(hashes)
        except OSError as e:
            self._log(f"cannot mark {digest} as verified: {e.strerror}; it is hashed again when it is next opened")
        else:
            self._share()
        self._state = "verified"

    def _share(self) -> None:
        try:
            share(self._entry)
        except OSError as e:
            self._log(f"cannot share what was verified in the cache: {e.strerror}; other images fetch it again")
        except PyerofsError as e:
            self._log(f"cannot share what was verified: {e}; other images fetch it again")

    def _mismatched(self, digest: str, found: str) -> None:
        self._mismatches += 1
        if self._mismatches == MISMATCHES_MAX:
            self._log(f"error: the registry's bytes for {digest} are {found} again: they stay unverified")
        else:
            self._log(f"the bytes in the cache for {digest} are {found}: all of them are fetched again")
            self._unmark()
            self._store.forget_all()
        self._state = "mismatch"
