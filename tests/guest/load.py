"""Readers of a mount that compare every byte all the time, while a test does its worst to what serves it."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from pathlib import Path

from pyerofs.daemon.record import Record, read_all
from tests.support.scene import Scene, until
from tests.support.trees import Tree

THREADS = 2
RECOVERY = 60.0  # seconds: the machine is emulated


def record_of(scene: Scene) -> Record:
    return next(r for r in read_all(dead=True) if r.target == str(scene.mnt))


class Load:
    """Readers of a mount. `reads` counts those that were right; `errors` holds what was not."""

    def __init__(self, root: Path, tree: Tree):
        self.reads = 0
        self.errors: list[str] = []
        self.longest = 0.0
        self._root = root
        self._tree = tree
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._files = [p.relative_to(tree.root) for p in tree.root.rglob("*") if p.is_file() and not p.is_symlink()]
        self._threads = [threading.Thread(target=self._read, args=(n,), daemon=True) for n in range(THREADS)]

    def _read(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set():
            path = rng.choice(self._files)
            began = time.monotonic()
            try:
                with (self._root / path).open("rb") as f:
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    found = hashlib.sha256(f.read()).digest()
            except OSError as e:
                self.errors.append(f"{path}: {e}")
                return
            if found != hashlib.sha256((self._tree.root / path).read_bytes()).digest():
                self.errors.append(f"{path}: wrong bytes")
                return
            with self._lock:
                self.reads += 1
                self.longest = max(self.longest, time.monotonic() - began)

    def go_on(self, count: int = 5) -> None:
        """Waits for so many more reads."""
        target = self.reads + count
        drop_caches()
        until(lambda: self.errors or self.reads >= target, "reads that go on", RECOVERY)
        assert self.errors == []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(RECOVERY)
        assert self.errors == []
        assert not any(thread.is_alive() for thread in self._threads), "a read hangs"


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1\n")


def alive_again(scene: Scene, before: Record) -> Record:
    """The record, once there is another daemon than in `before`."""

    def another() -> bool:
        now = record_of(scene)
        return now.pid != before.pid and now.alive()

    until(another, "that another daemon serves", RECOVERY)
    return record_of(scene)
