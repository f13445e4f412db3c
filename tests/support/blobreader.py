"""Reading ranges of a blob and checking every byte; shared by the tests of registry and blob."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pyerofs.errors import RegistryError
from pyerofs.registry.blob import Blob
from tests.support.fakeregistry import LIMIT, Behaviour, FakeRegistry, redirect

DATA = bytes(index * 7 % 251 for index in range(300_000))
SIZE = len(DATA)


class Sink:
    """Takes pieces, and checks that they are right, in order, and nothing but what may come."""

    def __init__(self, first: int = 0, end: int = SIZE, stop_at: int | None = None) -> None:
        self.at = self.first = first
        self.end = end
        self.stop_at = stop_at
        self.was_whole = False

    def __call__(self, offset: int, piece: bytes) -> bool:
        assert offset == self.at and piece
        assert piece == DATA[offset : offset + len(piece)]
        self.at += len(piece)
        assert self.at <= self.end
        return self.stop_at is None or self.at < self.stop_at

    def whole(self) -> None:
        assert self.at == self.first
        self.at, self.end, self.was_whole = 0, SIZE, True


def read(blob: Blob, first: int = 1000, length: int = 50_000) -> Sink:
    sink = Sink(first, first + length)
    count = blob.read_range(first, length, sink, whole=sink.whole)
    assert sink.at == sink.end
    assert count == (SIZE if sink.was_whole else length)
    return sink


def fails(blob: Blob, first: int = 1000, length: int = 50_000) -> tuple[RegistryError, int]:
    """The error, and how many bytes came before it."""
    sink = Sink(first, first + length)
    with pytest.raises(RegistryError) as caught:
        blob.read_range(first, length, sink, whole=sink.whole)
    assert "\n" not in str(caught.value) and "hush" not in str(caught.value)
    return caught.value, sink.at - (0 if sink.was_whole else first)


def ranges(server: FakeRegistry) -> list[str | None]:
    return [seen.headers.get("range") for seen in server.requests("/blobs/")]


def in_parallel(count: int, work: Callable[[], object]) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def call() -> None:
        barrier.wait(LIMIT)
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert failures == []


def to(cdn: FakeRegistry, query: str = "?signature=hush") -> Behaviour:
    return redirect(cdn.url + "{path}" + query)
