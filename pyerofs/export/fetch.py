"""Fetch threads: each takes a run out of the C core, requests it from the source, and hands every piece back.

Guarantees:
- A run is asked for again only while some read waits for it; how long a read may wait is its store's decision, so a
  read ends within its time whatever the source does, and a dead registry is not hammered.
- After a broken transfer the next attempt starts where the last whole granule ended, over another connection and,
  where there is one, at another mirror.
- A failure that no repetition can mend fails the waiting reads at once; the next read tries afresh.
- stop() returns within about a second, even while the network is dead.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from ..errors import CorruptError, PyerofsError, RegistryError, SpoiledError, UnavailableError, unexpected
from ..retry import MAX, delay, pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core import Run, Store
    from ..source.base import Source

    # What happened; and where it was final, the error itself.
    Log = Callable[[str, PyerofsError | None], None]

THREADS = 32  # range requests at the same time; threads are made as they are needed


def attempt_run(store: Store, source: Source, run: Run, cancel: Callable[[], bool]) -> int:
    """One attempt at what the run still lacks; bytes that were landed. Raises OSError, PyerofsError.

    After a SpoiledError nothing is present any more.
    """
    offset, length = store.resume(run.id)
    landed = 0

    def whole() -> None:
        store.resume(run.id, whole=True)

    def sink(at: int, piece: bytes) -> bool:
        nonlocal landed
        landed += len(piece)
        return store.land(run.id, at, piece)

    if length:
        try:
            source.read_range(offset, length, sink, whole=whole, cancel=cancel)
        except SpoiledError:
            store.forget_all()
            raise
    return landed


class Fetcher:
    """Owns its threads. `timeout`: seconds that a read may wait. `retrying` is called before each further attempt.

    start() and stop() belong to one owner; stop() after the store has been stopped.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        log: Log,
        landed: Callable[[], None],
        threads: int = THREADS,
        timeout: float = 120.0,
        retrying: Callable[[], None] = lambda: None,
    ):
        self._store = store
        self._source = source
        self._log = log
        self._landed = landed
        self._retrying = retrying
        self._limit = threads
        # A read that comes when another one's time is up must see a new attempt within its own.
        self._longest_pause = min(timeout / 8, MAX)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._in_row = 0  # failures of all threads since the last success
        self._timeout = timeout
        self._told = 0  # how many failed reads the log has been told of
        self._why: PyerofsError | None = None  # what went wrong last, for those

    def start(self) -> None:
        self._grow()

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _grow(self) -> None:
        with self._lock:
            if len(self._threads) < self._limit and not self._stopping.is_set():
                name = f"pyerofs-fetch-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no memory, or too many of them: those that there are do it, if there are any
                    if not self._threads:
                        raise
                    return
                self._threads.append(thread)

    def _work(self) -> None:
        while run := self._store.take():
            if run.idle == 0:
                self._grow()
            error, until = errno.EIO, None
            try:
                error, until = self._fetch(run)
            except Exception as e:  # without this thread all reads would hang
                self._log(f"fetching {run.length} bytes at {run.offset} failed: {unexpected(e)}", None)
            finally:
                self._store.finish(run.id, error, until)
                self._tell_of_failed(known=error != 0)

    def _tell_of_failed(self, known: bool) -> None:
        """Log a read that the store has failed for want of time while a fetch thread was still busy with it.

        `known`: the log has been told what failed the last of them.
        """
        if self._why is None:
            return
        with self._lock:
            before, self._told = self._told, self._store.stats().failed
        if self._told > before and not known:
            text = f"{self._told - before} failed after {self._timeout:g} s (oci.timeout): {self._why}"
            self._log(f"reads: {text}", self._why)

    def _fetch(self, run: Run) -> tuple[int, int | None]:
        """0, or the errno for those who still wait; and where what it is about ends, None for all of the run."""
        attempt = 0  # in a row without a byte
        position = run.offset
        while not self._stopping.is_set():
            try:
                attempt_run(self._store, self._source, run, self._stopping.is_set)
                self._in_row = 0
                self._landed()
                return 0, None
            except OSError as e:
                if e.errno == errno.ESHUTDOWN:
                    return errno.ESHUTDOWN, None
                failure = UnavailableError(f"cannot fetch: {e.strerror}")
                self._log(str(failure), failure)
                return e.errno or errno.EIO, None
            except PyerofsError as e:
                if self._stopping.is_set():
                    break  # we have cancelled it ourselves
                waiting = self._store.waiters(run.id)
                self._why = e
                if not (isinstance(e, RegistryError) and e.temporary):
                    self._log(f"fetching {run.length} bytes at {run.offset} failed: {e}", e)
                    return errno.EIO, e.end if isinstance(e, CorruptError) else None
                if not waiting:
                    return 0, None
                reached, _ = self._store.resume(run.id)
                attempt = attempt if reached == position else 0
                position = reached
                self._in_row += 1
                # Where others are served meanwhile it is bad luck rather than a bad state, and the pauses grow slowly.
                number = min(attempt, max(attempt // 2, self._in_row - 1))
                seconds = delay(number, e.retry_after, self._longest_pause)
                self._log(
                    f"attempt {attempt + 1} for {run.length} bytes at {run.offset}: {e}; retrying in {seconds:.1f} s",
                    None,
                )
                attempt += 1
                pause(seconds, lambda: self._stopping.is_set() or not self._store.waiters(run.id))
                if not self._stopping.is_set() and not self._store.waiters(run.id):
                    return 0, None  # their time was up
                self._retrying()
        return errno.ESHUTDOWN, None
