"""Log messages about a cache that cannot be written, or was damaged."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core import Store

BURST = 60.0  # seconds without damage after which new damage is worth a new line


class CacheLog:
    """Reports when a cache cannot be written, when it can be again, and when it was found damaged.

    It says each of them once, however many runs it concerns. Thread-safe.
    """

    def __init__(self, store: Store, log: Callable[[str], None]):
        self._store = store
        self._log = log
        self._lock = threading.Lock()
        self._without = False
        self._for_good = False
        self._healed = 0
        self._quiet_until = 0.0

    def lost(self, problem: str) -> None:
        """There is no place on disk, and will be none."""
        self._for_good = self._without = True
        self._log(f"cannot write to the cache: {problem}; continuing without it")

    def check(self) -> None:
        error, healed = self._store.health()
        lines = []
        with self._lock:
            if not self._for_good and bool(error) != self._without:
                self._without = bool(error)
                if error:
                    lines.append(f"cannot write to the cache: {os.strerror(error)}; continuing without it")
                else:
                    lines.append("the cache is writable again")
            if healed > self._healed:
                self._healed = healed
                now = time.monotonic()
                if now >= self._quiet_until:
                    lines.append("cached data was damaged; damaged parts are fetched again")
                self._quiet_until = now + BURST
        for line in lines:
            self._log(line)
