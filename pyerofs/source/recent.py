"""What was fetched and checked, and of which only a part was used lately: the rest is usually read next."""

from __future__ import annotations

import threading
from collections.abc import Sized
from typing import Generic, TypeVar

RECENT_MAX = 32 << 20  # bytes

_Part = TypeVar("_Part", bound=Sized)


class Recent(Generic[_Part]):
    """Parts by number, RECENT_MAX bytes of them at the most: the oldest goes first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[int, _Part] = {}  # the oldest first
        self._held = 0

    def get(self, number: int) -> _Part | None:
        with self._lock:
            return self._parts.get(number)

    def put(self, number: int, part: _Part) -> None:
        with self._lock:
            self._drop(number)
            self._parts[number] = part
            self._held += len(part)
            while self._held > RECENT_MAX:
                self._drop(next(iter(self._parts)))

    def drop(self, number: int) -> None:
        with self._lock:
            self._drop(number)

    def clear(self) -> None:
        with self._lock:
            self._parts.clear()
            self._held = 0

    def _drop(self, number: int) -> None:
        part = self._parts.pop(number, None)
        self._held -= 0 if part is None else len(part)
