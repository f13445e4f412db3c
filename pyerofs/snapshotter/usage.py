"""How much snapshots take: counted in the background, since containerd asks for all of them every few seconds."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable

from ..errors import PyerofsError
from ..grpc.status import RpcError
from ..mounting.stat import query
from .chains import Chains
from .protocol import Kind
from .state import Snapshot, State

_FRESH = 30.0  # seconds


class Usage:
    """Any thread. Counts on one of its own, one snapshot after the other."""

    def __init__(self, state: State, chains: Chains, log: Callable[[str], None]) -> None:
        self._state = state
        self._chains = chains
        self._log = log
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()
        self._waiting: set[int] = set()
        self._counted: dict[int, tuple[float, int, int]] = {}  # when, bytes, files
        threading.Thread(target=self._run, name="pyerofs-usage", daemon=True).start()

    def get(self, snapshot: Snapshot) -> tuple[int, int]:
        """Return bytes and files of a snapshot's own, as they were a while ago at most."""
        if snapshot.size >= 0:
            return snapshot.size, snapshot.inodes
        with self._lock:
            at, size, inodes = self._counted.get(snapshot.id, (float("-inf"), 0, 0))
            if time.monotonic() - at > _FRESH and snapshot.id not in self._waiting:
                self._waiting.add(snapshot.id)
                self._queue.put(snapshot)
        return size, inodes

    def forget(self, number: int) -> None:
        with self._lock:
            self._counted.pop(number, None)

    def _run(self) -> None:
        while True:
            snapshot = self._queue.get()
            try:
                size, inodes = self._count(snapshot)
                with self._lock:
                    self._counted[snapshot.id] = (time.monotonic(), size, inodes)
                if snapshot.kind is Kind.COMMITTED and not snapshot.lazy:
                    self._state.count(snapshot.id, size, inodes)
                    self.forget(snapshot.id)
            except (OSError, PyerofsError) as error:
                if not isinstance(error, RpcError):
                    self._log(f"cannot count what snapshot {snapshot.id} takes: {error}")
            finally:
                with self._lock:
                    self._waiting.discard(snapshot.id)

    def _count(self, snapshot: Snapshot) -> tuple[int, int]:
        if not snapshot.lazy:
            return count(self._chains.path(snapshot.id))
        record = self._chains.record(snapshot.id)
        present = query(record).get("cache", {}).get("present_bytes") if record else None
        if present is None:  # not mounted: what it was
            with self._lock:
                _, size, inodes = self._counted.get(snapshot.id, (0, 0, 0))
            return size, inodes
        return int(present), 1


def count(directory: str) -> tuple[int, int]:
    """Return the bytes that the files below a directory take, and how many they are, as `du` has it."""
    seen: set[tuple[int, int]] = set()
    size = 0
    directories = [directory]
    while directories:
        try:
            with os.scandir(directories.pop()) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if (found.st_dev, found.st_ino) not in seen:
                        seen.add((found.st_dev, found.st_ino))
                        size += found.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return size, len(seen) + 1
