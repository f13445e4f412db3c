"""A chore that is done some time after the first of many reasons for it, and not at all while there is none."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Delayed:
    """Runs `chore` in a thread of its own `seconds` after soon() was called first since the last run. Thread-safe."""

    def __init__(self, seconds: float, chore: Callable[[], None]):
        self._seconds = seconds
        self._chore = chore
        self._lock = threading.Lock()
        self._working = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False

    def soon(self) -> None:
        with self._lock:
            if self._timer is None and not self._closed:
                timer = threading.Timer(self._seconds, self._run)
                timer.daemon = True
                try:
                    timer.start()
                except RuntimeError:  # no memory for a thread: the next reason may come at a better time
                    return
                self._timer = timer

    def _run(self) -> None:
        with self._working:  # one run waits for another, however many reasons come meanwhile
            with self._lock:
                self._timer = None  # a reason that comes from now on may come too late for this run
            if not self._closed:
                self._chore()

    def close(self) -> None:
        """No chore begins after this, and none is under way. A chore must not call it."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        with self._working:
            pass
