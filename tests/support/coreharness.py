"""A Store over memory files with its service threads, for the tests of the C core.

The test itself is the source: it takes runs and lands their pieces, so that order and interleaving are its own.
Nothing sleeps: a test waits for the state that it needs to see, with a deadline.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyerofs.core import EXPORT_FLAGS, GRANULE, Connection, Run, Stats, Store, crc32c
from tests.support.nbdclient import TIMEOUT, Client

# san.py names the directory of the core that is to be tested: an installed one must not slip in.
if expected := os.environ.get("PYEROFS_TEST_CORE"):
    found = sys.modules["pyerofs._core"].__file__ or ""
    assert str(Path(found).parent) == expected, f"{found} is not in {expected}"

KIB = 1024
MIB = 1024 * KIB
WINDOW = 128 * KIB  # PLAN_WINDOW_FIRST
HEADER = 4096  # bytes before the bits of the map, and before the sums


@lru_cache(maxsize=4)
def pattern(size: int) -> bytes:
    """Bytes that tell where they belong: each 8 bytes are different from any other 8."""
    words = array.array("Q", range(0x0101010101, 0x0101010101 + (size + 7) // 8))
    return words.tobytes()[:size]


def until(done: Callable[[], Any], what: str = "") -> None:
    """Polls until done() is true."""
    deadline = time.monotonic() + TIMEOUT
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {TIMEOUT:.0f} s: {what or done}")
        time.sleep(0.0002)


def sums_of(data: bytes) -> bytes:
    """What the sums of these granules are in their file."""
    view = memoryview(data)
    return b"".join(struct.pack("=I", crc32c(view[start : start + GRANULE])) for start in range(0, len(data), GRANULE))


class Task(threading.Thread):
    """A call in a thread; result() waits for it, with a deadline, and raises what it raised."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any):
        super().__init__(daemon=True)
        self._call = (function, args, kwargs)
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        function, args, kwargs = self._call
        try:
            self._value = function(*args, **kwargs)
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(TIMEOUT)
        assert not self.is_alive(), f"{self._call[0]} has not returned"
        if self._error is not None:
            raise self._error
        return self._value


class Served:
    """The server's side of one connection and the client that is at its other end."""

    def __init__(self, store: Store, pair: tuple[socket.socket, socket.socket] | None = None, *, sender: bool = True):
        self.sock, other = pair or socket.socketpair()
        self.client = Client(other)
        self.connection = Connection(store, self.sock.fileno(), EXPORT_FLAGS)
        self.serving = Task(self.connection.serve)
        self.sending = Task(self.connection.send) if sender else None

    def end(self) -> int:
        """Why serve() came back. Raises what it raised."""
        return int(self.serving.result())

    def close(self) -> None:
        self.connection.stop()
        for task in (self.serving, self.sending):
            if task:
                task.join(TIMEOUT)
                assert not task.is_alive(), "a thread is still in the connection"
        self.connection.close()
        self.client.close()
        self.sock.close()


class Rig:
    """`size` bytes of blob, all absent at first, in memory files: `data_fd`, `map_fd`, `sums_fd`.

    `data_path`: where the data file is instead. `sums` False: the store has no sums to doubt its data by.
    """

    def __init__(
        self,
        size: int,
        *,
        timeout: float = 0,
        data: bytes | None = None,
        full: bool = False,
        sums: bool = True,
        align: int = GRANULE,
        data_path: Path | None = None,
    ):
        self.size = size
        self.align = align
        self.data = pattern(size) if data is None else data
        self.granules = -(-size // GRANULE)
        self._stack = ExitStack()
        if data_path:
            self.data_fd = os.open(data_path, os.O_RDWR | os.O_CREAT, 0o600)
            self._stack.callback(os.close, self.data_fd)
            os.truncate(self.data_fd, size)
        else:
            self.data_fd = self._memory("data", self.data if full else b"", size)
        self.map_fd = self._memory("map", b"", HEADER + -(-self.granules // 64) * 8)
        self.sums_fd = self._memory("sums", b"", HEADER + 4 * self.granules) if sums else None
        self._stores: list[Store] = []
        self._services: list[Task] = []
        self._served: list[Served] = []
        self.store = self.open(full=full, timeout=timeout)

    def _memory(self, name: str, content: bytes, size: int) -> int:
        fd = os.memfd_create(name)
        self._stack.callback(os.close, fd)
        os.truncate(fd, size)
        if content:
            os.pwrite(fd, content, 0)
        return fd

    def open(
        self, *, full: bool = False, timeout: float = 0, data_fd: int | None = None, sums_fd: int | None = None
    ) -> Store:
        """Another store over the same files, as another process would have it, but for those that are given."""
        map_fd = None if full else self.reopen(self.map_fd)
        store = Store(
            self.data_fd if data_fd is None else data_fd,
            self.size,
            map_fd=map_fd,
            sums_fd=self.sums_fd if sums_fd is None else sums_fd,
            map_offset=HEADER,
            timeout=timeout,
            align=self.align,
        )
        self._stores.append(store)
        self._services.append(Task(store.expire))
        return store

    def reopen(self, fd: int, flags: int = os.O_RDWR) -> int:
        """An open file description of its own, as another process has it."""
        again = os.open(f"/proc/self/fd/{fd}", flags)
        self._stack.callback(os.close, again)
        return again

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for store in self._stores:
            store.stop()
        for served in self._served:
            served.close()
        for task in self._services:
            task.join(TIMEOUT)
        if any(task.is_alive() for task in self._services):
            if error is None:
                raise AssertionError("a thread is still in the store")
            return  # freeing what it uses would hide the test's own error behind a crash
        for store in self._stores:
            store.close()
        self._stack.close()

    # Clients

    def connect(
        self, store: Store | None = None, *, tcp: bool = False, buffers: int = 0, sender: bool = True
    ) -> Served:
        pair = tcp_pair() if tcp else socket.socketpair()
        if buffers:
            pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        served = Served(store or self.store, pair, sender=sender)
        self._served.append(served)
        return served

    def client(self, store: Store | None = None) -> Client:
        return self.connect(store).client

    def task(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Task:
        """A thread that must have left the store when the test is over."""
        task = Task(function, *args, **kwargs)
        self._services.append(task)
        return task

    def slice(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    # The state of the store

    def stats(self) -> Stats:
        return self.store.stats()

    def parked(self, count: int, store: Store | None = None) -> None:
        """Waits until so many reads are parked."""
        until(lambda: (store or self.store).stats().parked == count, f"{count} parked")

    def preset(self, first: int, end: int, data: bytes | None = None) -> None:
        """Makes granules present behind the store's back, as another process would."""
        start, stop = first * GRANULE, min(end * GRANULE, self.size)
        bytes_ = self.data[start:stop] if data is None else data
        os.pwrite(self.data_fd, bytes_, start)
        if self.sums_fd is not None:
            os.pwrite(self.sums_fd, sums_of(bytes_ or self.data[start:stop]), HEADER + 4 * first)
        words = bytearray(os.pread(self.map_fd, -(-self.granules // 64) * 8, HEADER))
        for granule in range(first, end):
            words[granule // 8] |= 1 << granule % 8
        os.pwrite(self.map_fd, words, HEADER)

    # The source

    def take(self, store: Store | None = None) -> Run:
        """The next run, which must exist."""
        run = self.task((store or self.store).take).result()
        assert isinstance(run, Run)
        return run

    def land(self, run: Run, offset: int, length: int, store: Store | None = None) -> bool:
        """The true bytes of that range. False: nothing more is wanted."""
        return (store or self.store).land(run.id, offset, self.slice(offset, length))

    def fetch(self, run: Run, store: Store | None = None, piece: int = 64 * KIB) -> None:
        """All of a run, from its start to its end."""
        self.fetch_rest(run, run.offset, store, piece)

    def fetch_rest(self, run: Run, start: int, store: Store | None = None, piece: int = 64 * KIB) -> None:
        end = run.offset + run.length
        for offset in range(start, end, piece):
            if not self.land(run, offset, min(piece, end - offset), store):
                break
        (store or self.store).finish(run.id)

    def source(self, store: Store | None = None) -> Task:
        """A fetch thread that serves every run until the store is stopped."""
        used = store or self.store

        def loop() -> None:
            while (run := used.take()) is not None:
                try:
                    self.fetch(run, used)
                except BrokenPipeError:  # ESHUTDOWN: stopped meanwhile
                    return

        return self.task(loop)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return accepted, client


def file_with(stack: ExitStack, size: int, content: bytes = b"") -> int:
    """A memory file's descriptor, closed with the stack."""
    fd = os.memfd_create("file")
    stack.callback(os.close, fd)
    os.truncate(fd, size)
    os.pwrite(fd, content, 0)
    return fd


def bits_of(copy: bytes) -> set[int]:
    """The granules that a copy of the map names."""
    words = struct.unpack(f"<{len(copy) // 8}Q", copy)
    return {64 * i + bit for i, word in enumerate(words) for bit in range(64) if word >> bit & 1}


@contextmanager
def rlimit_fsize(limit: int) -> Iterator[None]:
    """Files cannot grow beyond limit; Python ignores SIGXFSZ, so writing fails with EFBIG."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
