"""What a cached blob needs beside being read: it is filled, verified, and the cache around it kept within its limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PyerofsError
from ..quantity import show_bytes
from .delayed import Delayed
from .digest_check import DigestCheck, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..cache.entry import Entry
    from ..config.options import Fill, ReadOptions
    from ..core import Store
    from ..source.base import Source
    from .fill import Filler

EVICT_DELAY = 5.0  # seconds from new bytes to a look at the size of the cache: what it may grow beyond its limit


class Background:
    """The background work of one export. Owns threads and timers, from start() on.

    `landed`: to be called after each run that brought something; the filling calls it for its own. `sync` makes the
    cache durable, `log` gets a line for the user; both are called from other threads. Thread-safe but for start() and
    stop().
    """

    def __init__(
        self,
        directory: str,
        entry: Entry,
        store: Store,
        source: Source,
        options: ReadOptions,
        *,
        landed: Callable[[], None],
        sync: Callable[[], None],
        log: Callable[[str], None],
    ):
        self._directory = directory
        self._limit = options.cache_max
        self._log = log
        self._too_large = False
        self._eviction = Delayed(EVICT_DELAY, self._evict)
        self._store = store
        self._source = source
        # What has been checked piece by piece needs no other check.
        self._verifier = None if source.storage.verified else DigestCheck(entry, store, source.content, sync, log)
        self._landed = landed
        self._retired: list[Filler] = []
        self._filler = self._make_filler(options.fill, options.fill_rate)

    def _make_filler(self, fill: Fill, rate: int | None) -> Filler | None:
        always = self._source.storage.fill  # a stream comes whole, or not at all
        if fill == "none" and not always:
            return None
        from .fill import Filler

        idle = fill == "idle" and not always
        return Filler(self._store, self._source, idle=idle, rate=rate, landed=self._landed, log=self._log)

    def change_fill(self, fill: Fill, rate: int | None) -> None:
        """Fill by other rules from now on. For one thread at a time, between start() and stop()."""
        if self._filler is not None:
            self._filler.retire()
            self._retired.append(self._filler)
        self._filler = self._make_filler(fill, rate)
        if self._filler is not None:
            self._filler.start()

    @property
    def verification(self) -> State:
        return self._verifier.state if self._verifier is not None else "verified"

    def settle(self, seconds: float) -> State:
        """Wait, at most so long, until what is complete has been hashed; return what is known then."""
        if self._verifier is not None:
            self._verifier.wait(seconds)
        return self.verification

    def start(self) -> None:
        self._evict()
        if self._verifier is not None:
            self._verifier.start()
        if self._filler is not None:
            self._filler.start()

    def landed(self) -> None:
        if self._verifier is not None:
            self._verifier.landed()
        if self._store.has(0, self._store.size):
            self._source.complete()
        if self._limit is not None:
            self._eviction.soon()

    def stop(self) -> None:
        """After the store has been stopped. Nothing begins after this, although landed() may still be called."""
        for filler in (*self._retired, *filter(None, [self._filler])):
            filler.stop()
        if self._verifier is not None:
            self._verifier.stop()
        self._eviction.close()

    def _evict(self) -> None:
        """Keep the cache small; one that cannot be is worth a line, no more."""
        if self._limit is None:
            return
        from ..cache.directory import evict, limit_in

        try:
            limit = limit_in(self._directory, self._limit)
            removed = evict(self._directory, limit)
        except PyerofsError as e:
            self._log(f"cannot make room: {e}")
            return
        too_large = removed.left > limit
        if too_large and not self._too_large:
            held = show_bytes(removed.left)
            self._log(f"the cache is above its limit (cache.max): {held} are in use, {show_bytes(limit)} are allowed")
        self._too_large = too_large
