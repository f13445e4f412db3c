"""What removed snapshots leave on disk: unmounted and deleted on threads of their own; no call waits for it."""

from __future__ import annotations

import os
import queue
import shutil
import threading
from collections.abc import Callable

from ..errors import PyerofsError
from .chains import Chains
from .state import State

_THREADS = 4  # of which each may wait for a filesystem that does not answer


class Removal:
    """`directory` has one directory for each snapshot, by its number. Any thread."""

    def __init__(self, directory: str, state: State, chains: Chains, log: Callable[[str], None]) -> None:
        self._directory = directory
        self._state = state
        self._chains = chains
        self._log = log
        self._lock = threading.Lock()
        self._pending: set[int] = set()
        self._threads = 0
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()

    def add(self, number: int) -> None:
        """Have a snapshot's directory removed, which nobody knows any more."""
        with self._lock:
            if number in self._pending:
                return
            self._pending.add(number)
            self._queue.put(number)
            if self._threads < min(_THREADS, len(self._pending)):
                threading.Thread(target=self._run, name="pyerofs-removal", daemon=True).start()
                self._threads += 1

    def add_unknown(self) -> None:
        """Have everything removed that no snapshot has: what is left after a crash, or could not be removed before."""
        with os.scandir(self._directory) as entries:
            found = {int(entry.name) for entry in entries if entry.name.isdecimal()}
        for number in sorted(found - self._state.ids()):  # which are read after: what was made meanwhile is known
            self.add(number)

    def _run(self) -> None:
        while True:
            with self._lock:
                try:
                    number = self._queue.get_nowait()
                except queue.Empty:
                    self._threads -= 1
                    return
            try:
                self._chains.drop(number)
                shutil.rmtree(os.path.join(self._directory, str(number)))
            except FileNotFoundError:
                pass
            except (OSError, PyerofsError) as error:
                self._log(f"cannot remove what is left of snapshot {number} yet: {error}")
            finally:
                with self._lock:
                    self._pending.discard(number)
