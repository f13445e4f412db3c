"""Prefetching: ranges that a start is known to read come in their order, before they are asked for.

Guarantees:
- Reads have their own fetch threads, and a read of what is on its way waits for that alone.
- Where reads want something else again and again, prefetching gives way: what is under way is given up, and nothing is
  asked for until they have not for PAUSE seconds.
- A run is short at first, so that what is wanted first does not wait behind what is wanted later.
- A failure is a line in the log and the end of it, never more: a read asks for its bytes by itself.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from ..errors import PyerofsError
from .fetch import attempt_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..core import Store
    from ..source.base import Source

    Ranges = Sequence[tuple[int, int]]  # offsets and lengths, in bytes

RUN_FIRST, RUN_MAX = 1 << 20, 8 << 20  # bytes
PAUSE = 0.1  # seconds
STREAMS = 2  # requests at the same time for ranges that go on: one that comes in, one that is on its way there
STREAMS_MAX = 8  # for many short ones, each of which costs a round trip
GAP = 128 << 10  # bytes between two ranges that cost less than a request of their own


def together(ranges: Iterable[tuple[int, int]], size: int, gap: int = GAP) -> list[tuple[int, int]]:
    """Return the ranges, cut to `size` bytes, with those that lie close to one another as one.

    What they become stands where the first part of it stood.
    """
    cut = [(offset, min(offset + length, size), n) for n, (offset, length) in enumerate(ranges) if offset < size]
    merged: list[list[int]] = []
    for offset, end, number in sorted(cut):
        if merged and offset <= merged[-1][1] + gap:
            last = merged[-1]
            last[1], last[2] = max(last[1], end), min(last[2], number)
        else:
            merged.append([offset, end, number])
    return [(offset, end - offset) for offset, end, _ in sorted(merged, key=lambda each: each[2]) if end > offset]


class Prefetcher:
    """Threads that fetch ranges of a store, those that were asked for first at first. Owns its threads.

    `landed` is called after each run that brought something, `log` gets a line for the user; both from those threads.
    Thread-safe. stop() after the store has been stopped.
    """

    def __init__(self, store: Store, source: Source, *, landed: Callable[[], None], log: Callable[[str], None]):
        self._store = store
        self._source = source
        self._landed = landed
        self._log = log
        self._lock = threading.Lock()
        self._pending: list[tuple[int, int]] = []
        self._threads: set[threading.Thread] = set()
        self._length = RUN_FIRST
        self._stopping = threading.Event()

    def add(self, ranges: Ranges) -> None:
        """Fetch these too; what there is already costs nothing."""
        found = [each for each in together(ranges, self._store.size) if not self._store.has(*each)]
        with self._lock:
            self._pending += found
            long = any(length > RUN_FIRST for _, length in self._pending)
            wanted = min(STREAMS_MAX, max(len(self._pending), STREAMS if long else 1))
            while len(self._threads) < wanted and self._pending and not self._stopping.is_set():
                thread = threading.Thread(target=self._work, name="pyerofs-prefetch", daemon=True)
                self._threads.add(thread)
                try:
                    thread.start()
                except RuntimeError:  # no memory for it: reads ask for their bytes themselves
                    self._threads.remove(thread)
                    break

    @property
    def busy(self) -> bool:
        """Whether something is being fetched, or about to be."""
        with self._lock:
            return bool(self._threads)

    def stop(self) -> None:
        """Return when the threads have ended."""
        self._stopping.set()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        try:
            while (wanted := self._next()) is not None and self._fetch(*wanted):
                pass
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self) -> tuple[int, int, int] | None:
        """Return the first range that has not been asked for as a whole, and how much of it to ask for."""
        with self._lock:
            if not self._pending or self._stopping.is_set():
                return None
            length = self._length
            self._length = min(2 * length, RUN_MAX)
            return (*self._pending[0], length)

    def _fetch(self, offset: int, length: int, most: int) -> bool:
        """Fetch a part of a range. False: nothing more is to be fetched."""
        try:
            run = self._store.take_range(offset, length, most, PAUSE)
        except OSError as e:
            self._failed(e)
            return False
        if run is None:
            with self._lock:
                if (offset, length) in self._pending:
                    self._pending.remove((offset, length))
            return True
        try:
            attempt_run(self._store, self._source, run, self._stopping.is_set)
        except (OSError, PyerofsError) as e:
            self._failed(e)
            return False
        finally:
            self._store.finish(run.id)
        self._landed()
        return True

    def _failed(self, error: OSError | PyerofsError) -> None:
        with self._lock:
            told = not self._pending
            self._pending.clear()
        if told or self._stopping.is_set() or (isinstance(error, OSError) and error.errno == errno.ESHUTDOWN):
            return
        self._log(f"prefetching has ended: {error.strerror if isinstance(error, OSError) else error}")
