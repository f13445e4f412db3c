"""An export: a source with its store, its cache and its fetch threads, ready to be read, served or mounted."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from ..cache.entry_format import MAP_OFFSET
from ..cache.paths import chosen_directory
from ..cache.sharing import forget, open_entry
from ..context import NOBODY, Context
from ..core import GRANULE, Store
from ..erofs.superblock import HEAD, Superblock, check_size, parse
from ..errors import ImageError, MountError, PyerofsError, RegistryError, UnavailableError
from ..source.base import SparingSource
from ..source.checked import CheckedSource
from ..source.local import LocalSource
from .background import Background
from .cache_log import CacheLog
from .delayed import Delayed
from .fetch import Fetcher
from .metrics import CountedSource, FetchCounters
from .tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..cache.entry import Entry
    from ..config.options import Fill, ReadOptions
    from ..source.base import Source
    from .digest_check import State
    from .prefetch import Prefetcher, Ranges

# A thread that blocks in C sees no signal, so what may run in the main thread waits in slices (seconds).
SLICE = 0.2
SETTLING = 3600.0  # seconds for a reader who has read everything to hear whether it was right
SYNC_DELAY = 30.0  # seconds from the first new byte to a durable map: what a crash of the machine may lose


class Export:
    """Owns the source and everything that it opens for it; close() ends all. Its methods may be called by any thread.

    Raises UsageError, UnavailableError. `context.log` is called from fetch threads too. `fetches`: what has been
    fetched.
    """

    def __init__(
        self,
        source: LocalSource | Source,
        options: ReadOptions,
        context: Context = NOBODY,
    ):
        self.source = source
        self.size = source.size
        self.timeout = options.timeout
        self.fill = options.fill
        self.fetches = FetchCounters()
        self._log = context.log
        self._pid = os.getpid()
        self._cancelled = context.cancelled
        self._readers_changed = threading.Condition()
        self._readers = self._users = 0
        self._closing = False
        self._sync_lock = threading.Lock()
        self._sync_failed = False  # and that has been said
        self._syncing = Delayed(SYNC_DELAY, self.sync)
        self._cache: Entry | None = None
        self._fetcher: Fetcher | None = None
        self._upkeep: Background | None = None
        self._prefetcher: Prefetcher | None = None
        self._counted: CountedSource | None = None
        self._rejected = False
        self._expirer: threading.Thread | None = None
        try:
            if isinstance(source, LocalSource):
                self.store = Store(source.fd, source.size)
            else:
                self._open_cached(source, options)
        except OSError as e:
            source.close()
            raise UnavailableError(f"cannot open {source.name}: {e.strerror}") from None
        except BaseException:
            source.close()
            raise

    def _open_cached(self, source: Source, options: ReadOptions) -> None:
        directory = chosen_directory(options)
        self._cache = cache = open_entry(directory, source.storage, source.size)
        try:
            self._keep_index(source)
            self.store = Store(
                cache.data_fd,
                source.size,
                map_fd=cache.map_fd,
                sums_fd=cache.sums_fd if cache.sums_fd >= 0 else None,
                map_offset=MAP_OFFSET,
                timeout=options.timeout,
                align=max(GRANULE, source.storage.align),
            )
        except BaseException:
            cache.close()
            raise
        if isinstance(source, SparingSource):
            source.spare = self._land_spare
        self._health = CacheLog(self.store, self._log)
        if cache.problem:
            self._health.lost(cache.problem)
        self._counted = counted = CountedSource(
            CheckedSource(source, cache) if source.storage.shared else source, self.fetches
        )
        self._fetcher = Fetcher(
            self.store, counted, self._failed, self._landed, timeout=options.timeout, retrying=self.fetches.retried
        )
        self._upkeep = Background(
            directory, cache, self.store, counted, options, landed=self._landed, sync=self.sync, log=self._log
        )
        self._fetcher.start()
        self._upkeep.start()
        self._expirer = threading.Thread(target=self.store.expire, name="pyerofs-expire", daemon=True)
        self._expirer.start()

    def prefetch(self, ranges: Ranges) -> None:
        """Fetch these offsets and lengths, in bytes, in this order, before they are asked for; return at once.

        Raises MountError once close() has begun.
        """
        with self.using():
            if not ranges or self._counted is None:
                return
            with self._sync_lock:
                if self._prefetcher is None:
                    from .prefetch import Prefetcher

                    self._prefetcher = Prefetcher(self.store, self._counted, landed=self._landed, log=self._log)
            self._prefetcher.add(ranges)

    def _keep_index(self, source: Source) -> None:
        if source.storage.section and self._cache is not None and not self._cache.problem:
            from ..source.index_file import keep_index

            try:
                keep_index(self._cache.path, source.storage.section)
            except OSError as e:
                self._log(f"cannot keep the chunk index in the cache: {e.strerror}")

    def _land_spare(self, offset: int, data: bytes) -> None:
        """Land what came unasked, as far as it is neither present nor on its way. For fetch threads."""
        end = offset + len(data)
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while run := self.store.take_within(offset, end):
                try:
                    self.store.land(run.id, run.offset, view[run.offset - offset :][: run.length])
                finally:
                    self.store.finish(run.id)

    def _failed(self, text: str, error: PyerofsError | None) -> None:
        if error is not None:
            self.last_error = error
            if self._readers:
                return
        self._log(text)

    def _landed(self) -> None:
        """Something new is in the cache: some time from now it shall be there to stay."""
        self._health.check()
        self._syncing.soon()
        if self._upkeep is not None:
            self._upkeep.landed()

    @property
    def verification(self) -> State:
        """Tell whether all that is in the cache is known to be what its digest says, until close().

        "unverified" for a local file.
        """
        return self._upkeep.verification if self._upkeep is not None else "unverified"

    def tally(self) -> Tally | None:
        """Return a tally for a reader that is to learn at the end whether all that it was given was right.

        None where each byte has been verified before it goes out, or where no digest of all of them is known.
        """
        if self._upkeep is None or self.verification == "verified":
            return None
        digest = self.source.content() if not isinstance(self.source, LocalSource) else None
        return Tally(self.size, digest) if digest else None

    def change_fill(self, fill: Fill, rate: int | None) -> None:
        """Download unread data by other rules from now on; `rate` in bytes a second. For one thread at a time."""
        self.fill = fill
        if self._upkeep is not None:
            self._upkeep.change_fill(fill, rate)

    def settle(self, seconds: float = SETTLING) -> State:
        """Wait, at most so long, until what is complete has been hashed; return what is known then."""
        return self._upkeep.settle(seconds) if self._upkeep is not None else "unverified"

    def reject(self) -> None:
        """Drop what has come, which is not what it should be.

        Nothing of it stays in the cache, unless others use it.
        """
        self._rejected = True
        with contextlib.suppress(OSError):
            self.store.forget_all()

    # The last thing that went wrong for good, to tell a reader more than "I/O error".
    last_error: PyerofsError | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Guard a read by this process itself.

        close() waits for its end, and what fails for good is raised there, so that it is not logged as well. Raises
        ValueError once close() has begun.
        """
        with self._readers_changed:
            self._check_open()
            if not self._readers:
                self.last_error = None
            self._readers += 1
        try:
            yield
        finally:
            with self._readers_changed:
                self._readers -= 1
                self._readers_changed.notify_all()

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Around a look at the store: close() waits for its end. Raises MountError once close() has begun."""
        with self._readers_changed:
            if self._closing:
                raise MountError(f"{self.source.name} is being closed")
            self._users += 1
        try:
            yield
        finally:
            with self._readers_changed:
                self._users -= 1
                self._readers_changed.notify_all()

    @property
    def cache_path(self) -> str:
        """The directory of the blob in the cache; "" for a local file."""
        return self._cache.path if self._cache is not None else ""

    def _check_open(self) -> None:
        if self._closing:
            raise ValueError("I/O operation on closed file")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with bytes of the blob as they come. Raises what made that impossible."""
        done = 0
        deadline = time.monotonic() + self.timeout
        with self.reading():
            while done < len(buffer):
                try:
                    count = self.store.read_into(buffer[done:], offset + done, SLICE)
                except OSError as e:
                    self._check_open()
                    raise self.last_error or UnavailableError(f"cannot read {self.source.name}: {e.strerror}") from None
                done += count
                if count:
                    deadline = time.monotonic() + self.timeout
                elif self._cancelled():
                    raise InterruptedError
                elif time.monotonic() > deadline:
                    raise self.timed_out(offset + done)

    def timed_out(self, offset: int) -> RegistryError:
        return RegistryError(
            f"cannot read {self.source.name} at {offset}: nothing came for {self.timeout:g} s (oci.timeout)",
            temporary=True,
        )

    def superblock(self) -> Superblock:
        """Return the image's superblock, checked against the size of the blob. Raises ImageError, RegistryError."""
        length = min(HEAD, self.size)
        head = bytearray(length)
        self.read_into(memoryview(head), 0)
        try:
            superblock = parse(bytes(head), os.sysconf("SC_PAGESIZE"))
            check_size(superblock, self.size)
        except ImageError as e:
            raise ImageError(f"{self.source.name}: {e}") from None
        return superblock

    def sync(self) -> None:
        """Make what has been fetched survive a crash of the machine; a cache that cannot is only worth a line."""
        with self._sync_lock:
            try:
                if self._cache is not None:
                    self._cache.sync(self.store)
                self._sync_failed = False
            except OSError as e:
                if self._sync_failed:
                    return
                self._sync_failed = True
                self._log(
                    f"cannot write the map of the cache: {e.strerror}; after a reboot its bytes are fetched again"
                )

    def close(self) -> None:
        """After every connection of the store has ended. Reads under way in other threads are ended first.

        In a process after fork there is nothing to end: its threads are its parent's.
        """
        if os.getpid() != self._pid:
            return
        with self._readers_changed:
            self._closing = True
        self.store.stop()
        with self._readers_changed:
            self._readers_changed.wait_for(lambda: not self._readers and not self._users)
        if self._upkeep is not None:
            self._rejected = self._rejected or self._upkeep.verification == "mismatch"
            self._upkeep.stop()
        self._syncing.close()
        if self._prefetcher is not None:
            self._prefetcher.stop()
        if self._fetcher is not None:
            self._fetcher.stop()
        if self._expirer is not None:
            self._expirer.join()
        self.sync()
        self.store.close()
        if self._cache is not None:
            self._cache.close()
            if self._rejected:
                forget(self._cache)
        self.source.close()
