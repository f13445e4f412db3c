"""A blob as a stream from its first byte to its last, fetched ahead by a thread and resumed where it broke off.

The thread hashes what comes; the reader gets the bytes before the digest is known, and calls finish() at the end.
Memory is bounded by AHEAD. A stream that breaks off goes on with the next byte, with growing pauses, until `timeout`
seconds have brought nothing.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Self

from ..errors import ImageError, PyerofsError, RegistryError
from ..retry import delay, pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from .blobs import BlobReader

AHEAD = 8 << 20  # bytes that wait to be read
_LOOK = 0.2  # seconds between two looks at cancel


class BlobStream:
    """A readable file of a blob, for one reader. Owns its thread until close().

    `progress` gets the bytes that have come so far, from the thread. `cancel` ends a read with InterruptedError.
    """

    def __init__(
        self,
        blob: BlobReader,
        timeout: float,
        *,
        progress: Callable[[int], None] = lambda _: None,
        cancel: Callable[[], bool] = lambda: False,
    ) -> None:
        self._blob = blob
        blob.checked = True  # by its digest, at the end
        self._timeout = timeout
        self._progress = progress
        self._cancel = cancel
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._held = 0  # bytes in them
        self._come = 0  # bytes of the blob so far
        self._hasher = hashlib.new(blob.digest.partition(":")[0])
        self._error: PyerofsError | None = None
        self._done = self._closing = False
        self._thread = threading.Thread(target=self._work, name="pyerofs-blob-stream", daemon=True)
        self._thread.start()

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes, and none only at the end. Raises RegistryError, InterruptedError."""
        with self._changed:
            while not self._pieces:
                if self._error is not None:
                    raise self._error
                if self._done:
                    return b""
                if self._closing or self._cancel():
                    raise InterruptedError
                self._changed.wait(_LOOK)
            piece = self._pieces.popleft()
            if len(piece) > count:
                self._pieces.appendleft(piece[count:])
                piece = piece[:count]
            self._held -= len(piece)
            self._changed.notify_all()
            return piece

    def finish(self) -> None:
        """Read what is left, and compare the digest. Raises ImageError, and as read()."""
        while self.read(AHEAD):
            pass
        found = f"{self._hasher.name}:{self._hasher.hexdigest()}"
        if found != self._blob.digest:
            raise ImageError(f"the bytes that came for {self._blob.digest} are {found}")

    def close(self) -> None:
        """End the thread, within about a second."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The thread

    def _work(self) -> None:
        error: PyerofsError | None = None
        try:
            self._fetch()
        except PyerofsError as e:
            error = e
        with self._changed:
            self._error = error
            self._done = True
            self._changed.notify_all()

    def _fetch(self) -> None:
        attempt, last = 0, time.monotonic()
        while self._come < self._blob.size and not self._ended():
            before = self._come
            try:
                self._blob.read_range(before, self._blob.size - before, self._take, cancel=self._ended)
            except RegistryError as error:
                now = time.monotonic()
                if self._come > before:
                    attempt, last = 0, now
                seconds = delay(attempt, error.retry_after)
                if self._ended() or not error.temporary or now + seconds > last + self._timeout:
                    raise
                attempt += 1
                pause(seconds, self._ended)

    def _ended(self) -> bool:
        return self._closing or self._cancel()

    def _take(self, at: int, data: bytes) -> bool:
        data = bytes(data[max(0, self._come - at) :])  # a whole blob that came instead of the rest begins anew
        self._hasher.update(data)
        with self._changed:
            while self._held > AHEAD and not self._ended():
                self._changed.wait(_LOOK)
            if data:
                self._pieces.append(data)
                self._held += len(data)
                self._come += len(data)
            self._changed.notify_all()
        self._progress(self._come)
        return not self._ended()
