"""A whole blob into a file: several ranges at once, resumed where it broke off, and hashed as it comes.

Beside the file lies another one for as long as it is not complete, FILE.parts, with a byte for each part that is in its
place. It is only a hint of what need not be fetched again: the digest of all decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..errors import ImageError, RegistryError
from ..retry import delay, pause
from .blob import Blob

ATTEMPTS = 8  # failures in a row between which nothing came
PART = 2 << 20  # bytes: the least that one request asks for, and what is lost of each when a download is ended
CONNECTIONS = 4  # requests for one blob at the same time
_RUN = 8  # parts that one request asks for at most
_HERE, _COMING = 1, 2


def download(
    blob: Blob,
    path: str,
    progress: Callable[[int], None] = lambda done: None,
    cancel: Callable[[], bool] = lambda: False,
    slots: threading.Semaphore | None = None,
) -> None:
    """Make `path` the blob; what an earlier call left there is taken for the part that it says.

    `progress` gets the bytes so far, from several threads, one at a time. `slots` bounds the requests of several
    downloads together. Raises RegistryError, ImageError where what came has another digest (then nothing is kept),
    InterruptedError where `cancel` says so. OSError of the file comes out unchanged.
    """
    blob.checked = True  # by the digest of all of it
    with _Download(blob, path, progress, cancel, slots or threading.Semaphore(CONNECTIONS)) as running:
        resumed = running.done > 0
        running.run()
        if running.is_sound():
            running.finish()
            return
        found = running.digest()
        running.drop()
    if resumed:  # what was kept was not what it seemed
        download(blob, path, progress, cancel, slots)
        return
    raise ImageError(f"{blob} came with another content: it has the digest {found}")


class _Download:
    def __init__(
        self,
        blob: Blob,
        path: str,
        progress: Callable[[int], None],
        cancel: Callable[[], bool],
        slots: threading.Semaphore,
    ) -> None:
        self._blob, self._path, self._progress, self._cancel, self._slots = blob, path, progress, cancel, slots
        self._count = -(-blob.size // PART)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._marks = os.open(f"{path}.parts", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        known = os.pread(self._marks, self._count, 0) if os.fstat(self._file).st_size == blob.size else b""
        self._parts = bytearray(known.ljust(self._count, b"\0").replace(bytes([_COMING]), b"\0"))
        os.ftruncate(self._marks, 0)
        os.pwrite(self._marks, self._parts, 0)
        os.ftruncate(self._file, blob.size)
        self.done = sum(self._length(part) for part in range(self._count) if self._parts[part] == _HERE)
        self._algorithm, _, self._expected = blob.digest.partition(":")
        self._hasher = hashlib.new(self._algorithm)
        self._hashed = 0  # parts
        self._hashing = threading.Lock()
        self._lock = threading.Lock()
        self._failures = 0
        self._failure: BaseException | None = None
        self._whole = False  # an answer is all of the blob, whatever was asked for

    def _length(self, part: int) -> int:
        return min(PART, self._blob.size - part * PART)

    def run(self) -> None:
        workers = max(1, min(CONNECTIONS, self._count))
        if workers == 1:
            self._work()
        else:
            with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="pyerofs-range") as pool:
                for _ in range(workers):
                    pool.submit(self._work)
        if self._failure is not None:
            raise self._failure
        self._hash()

    def _work(self) -> None:
        try:
            while (run := self._take()) is not None:
                self._fetch(*run)
        except BaseException as error:
            with self._lock:
                if self._failure is None:
                    self._failure = error

    def _is_over(self) -> bool:
        return self._failure is not None or self._cancel()

    def _take(self) -> tuple[int, int] | None:
        """Return the next parts to ask for, the first and how many, or None."""
        with self._lock:
            if self._failure is not None:
                return None
            first = self._parts.find(0)
            if first < 0 or self._whole:
                return None
            left = self._parts.count(0)
            most = max(1, min(_RUN, left // CONNECTIONS))
            end = first
            while end < self._count and end - first < most and not self._parts[end]:
                self._parts[end] = _COMING
                end += 1
            return first, end - first

    def _fetch(self, first: int, count: int) -> None:
        start, end = first * PART, min(self._blob.size, (first + count) * PART)
        at = start  # all before it has come
        whole = False

        def begin_whole() -> None:
            nonlocal whole
            with self._lock:
                whole, self._whole = True, True

        def others_have_it() -> bool:
            return self._is_over() or (self._whole and not whole)

        def sink(offset: int, piece: bytes) -> bool:
            nonlocal at, end
            if whole and offset == 0:
                at, end = 0, self._blob.size
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._file, view, offset + len(piece) - len(view))
                view = view[written:]
            before, at = at, max(at, offset + len(piece))
            self._came(before, at)
            return not self._is_over()

        try:
            while at < end and not (self._whole and not whole):
                if self._cancel():
                    raise InterruptedError
                if self._failure is not None:
                    return
                before = at
                try:
                    with self._slots:
                        self._blob.read_range(at, end - at, sink, whole=begin_whole, cancel=others_have_it)
                except RegistryError as error:
                    if others_have_it():
                        continue  # it was ended by that
                    with self._lock:
                        self._failures = 0 if at > before else self._failures + 1
                        failures = self._failures
                    if not error.temporary or failures >= ATTEMPTS:
                        raise
                    pause(delay(failures, error.retry_after), self._is_over)
                    if whole:
                        at, whole = start, False
                        with self._lock:
                            self._whole = False
        finally:
            self._give_back(first, count)

    def _came(self, before: int, at: int) -> None:
        """Bytes [before, at) are in their place, and so may be parts."""
        with self._lock:
            for part in range(before // PART, -(-at // PART)):
                end = part * PART + self._length(part)
                if end <= at and self._parts[part] != _HERE:
                    self._parts[part] = _HERE
                    os.pwrite(self._marks, bytes([_HERE]), part)
            self.done = min(self._blob.size, self.done + at - before)
            self._progress(self.done)
        self._hash()

    def _give_back(self, first: int, count: int) -> None:
        with self._lock:
            for part in range(first, first + count):
                if self._parts[part] == _COMING:
                    self._parts[part] = 0

    def _hash(self) -> None:
        """Hash the parts that have come in their order, unless another thread does."""
        if not self._hashing.acquire(blocking=False):
            return
        try:
            while self._hashed < self._count and self._parts[self._hashed] == _HERE:
                self._hasher.update(os.pread(self._file, self._length(self._hashed), self._hashed * PART))
                self._hashed += 1
        finally:
            self._hashing.release()

    def is_sound(self) -> bool:
        return self._hashed == self._count and self._hasher.hexdigest() == self._expected

    def digest(self) -> str:
        return f"{self._algorithm}:{self._hasher.hexdigest()}"

    def finish(self) -> None:
        os.unlink(f"{self._path}.parts")

    def drop(self) -> None:
        for path in (self._path, f"{self._path}.parts"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def __enter__(self) -> _Download:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        os.close(self._marks)
