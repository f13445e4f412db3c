"""Filling: fetch unread data too, in order, through the same store, behind every read.

Guarantees:
- One run at a time, no longer than the source brings in about half a second: a read that falls into it waits no longer
  than it would for a run of its own, and all other reads have the other fetch threads.
- In quiet times only ("idle"): a run begins when no read has waited for QUIET seconds, and is given up as soon as
  a read waits for bytes that it does not bring. That costs a connection, and makes a read find the line free.
- At the rate that was asked for, over any time that is longer than a few seconds.
- A failure is a line in the log and a pause, never more. A process whose blob is complete is not woken.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING

from ..core import FILL, GRANULE, IDLE
from ..errors import PyerofsError, RegistryError
from ..retry import delay
from .fetch import attempt_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core import Run, Store
    from ..source.base import Source

RUN = 4 << 20  # bytes: on fast lines too no more, so that a rate is kept evenly and a read need not wait
RUN_MIN = 64 << 10  # below it a request costs more than its bytes
QUIET = 3.0  # seconds without a waiting read before "idle" begins: a start is over
LOOK_AGAIN = 0.2  # seconds, where all that is absent is on its way already
PAUSE_FIRST, PAUSE_MAX = 2.0, 300.0  # seconds after a failure; no read waits for the next attempt


class Bucket:
    """A token bucket: says how long to wait so that `rate` bytes a second are not exceeded. For one thread."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic):
        self._rate = rate
        self._clock = clock
        self._free_at = clock()

    def spent(self, count: int) -> float:
        """Seconds to wait after so many bytes. What was not used while there was nothing to do is not made up for."""
        now = self._clock()
        self._free_at = max(self._free_at, now - 1) + count / self._rate
        return max(0.0, self._free_at - now)


class Filler:
    """A thread that fetches what no read has asked for. Owns its thread.

    `rate`: bytes a second, None for no limit. `landed` is called after each run that brought something; `log` gets a
    line for the user; both from that thread. `pause` waits so many seconds or until stop(), whichever comes first.
    stop() after the store has been stopped.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        *,
        idle: bool,
        rate: int | None,
        landed: Callable[[], None],
        log: Callable[[str], None],
        pause: Callable[[float], object] | None = None,
    ):
        self._store = store
        self._source = source
        self._kind = IDLE if idle else FILL
        self._look_again = QUIET if idle else LOOK_AGAIN
        self._length = RUN if rate is None else max(RUN_MIN, min(RUN, rate // GRANULE * GRANULE))
        self._bucket = None if rate is None else Bucket(rate)
        self._landed = landed
        self._log = log
        self._failures = 0  # in a row
        self._stopping = threading.Event()
        self._pause = pause or self._stopping.wait
        self._thread = threading.Thread(target=self._work, name="pyerofs-fill", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def retire(self) -> None:
        """Fetch nothing more from now on. The thread waits where it is; stop() is still to be called."""
        self._stopping.set()

    def _work(self) -> None:
        while run := self._store.take_fill(self._kind, self._length, self._look_again):
            if self._stopping.is_set():
                self._store.finish(run.id)
                return
            seconds = self._fetch(run)
            if seconds > 0:
                self._pause(seconds)

    def _fetch(self, run: Run) -> float:
        """Seconds to wait before the next one."""
        try:
            count = attempt_run(self._store, self._source, run, self._stopping.is_set)
        except (OSError, PyerofsError) as e:
            return self._failed(e)
        finally:
            # A read that waits for what has not come has it fetched by itself, with a read's patience.
            self._store.finish(run.id)
        if self._failures:
            self._failures = 0
            self._log("filling the cache has resumed")
        self._landed()
        return self._bucket.spent(count) if self._bucket else 0

    def _failed(self, error: OSError | PyerofsError) -> float:
        # The store is stopped before this thread is told to.
        if self._stopping.is_set() or (isinstance(error, OSError) and error.errno == errno.ESHUTDOWN):
            return 0
        if not self._failures:
            text = f"cannot write to the cache: {error.strerror}" if isinstance(error, OSError) else str(error)
            self._log(f"filling the cache: {text}; retrying from time to time")
        asked = error.retry_after if isinstance(error, RegistryError) else None
        self._failures += 1
        return delay(self._failures - 1, asked, PAUSE_MAX, PAUSE_FIRST)
