"""What a reader has been given of a blob, so that the end can tell whether all of it was right. Pure values."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

GAPS_MAX = 1 << 16  # between what was given


class Tally:
    """Of a blob of `size` bytes that must have this digest. Thread-safe.

    Who reads it in order, from its beginning, has exactly what he was given hashed. Of others it is known only when
    they have been given all of it.
    """

    def __init__(self, size: int, digest: str):
        self.digest = digest
        self._size = size
        self._algorithm = digest.partition(":")[0]
        self._lock = threading.Lock()
        self._state = hashlib.new(self._algorithm)
        self._at = 0  # bytes in it
        self._lost = False  # who reads in so many places is not after the whole
        self._ends: list[tuple[int, int]] = []  # what was given, first and end; neither overlapping nor touching

    def add(self, offset: int, data: Buffer) -> str | None:
        """Note that these bytes were given; return the digest of all of them when these were the last in order.

        A read from the beginning begins anew.
        """
        with self._lock:
            length = memoryview(data).nbytes
            self._cover(offset, offset + length)
            if offset == 0 and self._at:
                self._state, self._at = hashlib.new(self._algorithm), 0
            if offset != self._at:
                return None
            self._state.update(data)
            self._at += length
            return f"{self._algorithm}:{self._state.hexdigest()}" if self._at == self._size else None

    def passed(self, offset: int, length: int) -> None:
        """So many bytes were given, and not seen here."""
        with self._lock:
            self._cover(offset, offset + length)

    @property
    def is_whole(self) -> bool:
        """Whether everything has been given, in whatever order."""
        with self._lock:
            return self._ends == [(0, self._size)]

    def _cover(self, first: int, end: int) -> None:
        if self._lost:
            return
        at = bisect_left(self._ends, (first, first))
        if at and self._ends[at - 1][1] >= first:
            at -= 1
        last = at
        while last < len(self._ends) and self._ends[last][0] <= end:
            first, end = min(first, self._ends[last][0]), max(end, self._ends[last][1])
            last += 1
        self._ends[at:last] = [(first, end)]
        if len(self._ends) > GAPS_MAX:
            self._lost = True
            self._ends.clear()
