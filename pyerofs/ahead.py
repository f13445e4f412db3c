"""Work done by a thread beside the one that needs it: what costs per byte releases the GIL, so that cores share it.

Both ways keep the order, and are bounded.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


class Ahead(Generic[T]):
    """An iterator over what `items` yields, which a thread takes out of theirs, at most `limit` before they are wanted.

    What `items` raises comes out in its turn. For one thread. close() tells the thread to end, and does not wait: it
    may be in the middle of `items`, whose owner ends that.
    """

    def __init__(self, items: Generator[T, None, None], limit: int, name: str) -> None:
        self._items = items
        self._limit = limit
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                with self._changed:
                    while len(self._ready) >= self._limit and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        break
                    self._ready.append(item)
                    self._changed.notify_all()
            self._items.close()
        except BaseException as caught:
            error = caught
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        with self._changed:
            while not self._ready and not self._ended:
                self._changed.wait()
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()


class InTurn:
    """Calls of functions, one after another, by a thread of their own. For one thread.

    A call that failed is raised by the next add() or by drain(), and none is made after it. At most `limit` wait.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._limit = limit
        self._calls: deque[Future[None]] = deque()
        self._failed = False

    def add(self, call: Callable[[], None]) -> None:
        """Have it called; blocks while too many wait."""
        while len(self._calls) >= self._limit:
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(self._call, call))

    def _call(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except BaseException:
            self._failed = True
            raise

    def drain(self) -> None:
        """Wait for all of them."""
        while self._calls:
            self._calls.popleft().result()

    def close(self) -> None:
        """Wait for the one that is under way; no other is made."""
        self._failed = True
        self._pool.shutdown()
