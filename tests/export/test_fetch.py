"""Fetch threads over a registry that misbehaves: what the reader sees, and what the registry is asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyerofs.config.options import ReadOptions
from pyerofs.context import Context
from pyerofs.errors import NotFoundError, PyerofsError, RegistryError, UnavailableError
from pyerofs.export import fetch
from pyerofs.export.base import Export
from pyerofs.http.transport import Transport
from pyerofs.registry.client import Registry
from pyerofs.source.raw import RawSource
from tests.support.fakeregistry import FakeRegistry, reset, short, stall, status, whole

SIZE = (3 << 20) + 777
BLOB = os.urandom(SIZE)


class Reader:
    def __init__(self, export: Export, lines: list[str]) -> None:
        self.export = export
        self.lines = lines

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.export.read_into(memoryview(data), offset)
        return bytes(data)


@contextmanager
def reading(fake: FakeRegistry, cache: Path, timeout: float = 20) -> Iterator[Reader]:
    digest = fake.add_blob(BLOB)
    transport = Transport()
    registry = Registry(fake.host, "app", transport, environ={})
    source = RawSource("app:1", 0, registry.blob(digest, SIZE), transport)
    lines: list[str] = []
    export = Export(source, ReadOptions(cache=str(cache), timeout=timeout), Context(lines.append))
    try:
        yield Reader(export, lines)
    finally:
        export.close()


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


def ranges(fake: FakeRegistry) -> list[tuple[int, int]]:
    found = []
    for seen in fake.requests("/blobs/"):
        first, _, last = seen.headers["range"].removeprefix("bytes=").partition("-")
        found.append((int(first), int(last)))
    return found


def test_runs_that_follow_one_another_share_a_connection(fake: FakeRegistry, tmp_path: Path) -> None:
    with reading(fake, tmp_path) as reader:
        for offset in range(0, 8 << 18, 1 << 18):  # far apart, one at a time: nothing is read ahead
            assert reader.read(offset, 100) == BLOB[offset : offset + 100]
    peers = [seen.peer for seen in fake.requests("/blobs/")]
    assert len(peers) > 4
    assert len(set(peers)) < len(peers) / 2  # a thread may take the next run before the last one has let go


def test_every_byte_is_fetched_once(fake: FakeRegistry, tmp_path: Path) -> None:
    with reading(fake, tmp_path) as reader:
        readers = [
            threading.Thread(target=lambda: [reader.read(o, min(50_000, SIZE - o)) for o in range(0, SIZE, 50_000)])
            for _ in range(8)
        ]
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join()
        assert reader.read(0, SIZE) == BLOB
    assert sum(last + 1 - first for first, last in ranges(fake)) == SIZE


def test_nothing_is_fetched_again_by_the_next(fake: FakeRegistry, tmp_path: Path) -> None:
    with reading(fake, tmp_path) as reader:
        assert reader.read(5, SIZE - 5) == BLOB[5:]
    asked = len(fake.requests("/blobs/"))
    with reading(fake, tmp_path) as reader:
        assert reader.read(0, SIZE) == BLOB
    assert len(fake.requests("/blobs/")) == asked


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_passing_refusal_is_retried(fake: FakeRegistry, tmp_path: Path, code: int) -> None:
    fake.script(status(code), status(code))
    with reading(fake, tmp_path) as reader:
        assert reader.read(1000, 5000) == BLOB[1000:6000]
        assert any("retrying in" in line for line in reader.lines)
    assert len(fake.requests("/blobs/")) == 3


def test_a_broken_transfer_goes_on_at_a_granule(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.script(short(10_000), reset)
    with reading(fake, tmp_path) as reader:
        assert reader.read(0, 100_000) == BLOB[:100_000]
    assert [first for first, _ in ranges(fake)] == [0, 8192, 8192]


def test_what_has_landed_before_a_failure_is_answered(fake: FakeRegistry, tmp_path: Path) -> None:
    release = threading.Event()
    fake.script(stall(release, after=20_000))
    with reading(fake, tmp_path) as reader:
        assert reader.read(0, 16_384) == BLOB[:16_384]
        release.set()


@pytest.mark.parametrize("code", [404, 410, 416])
def test_a_final_refusal_fails_at_once_and_the_next_read_tries_afresh(
    fake: FakeRegistry, tmp_path: Path, code: int
) -> None:
    fake.script(status(code))
    with reading(fake, tmp_path) as reader:
        with pytest.raises(PyerofsError) as caught:
            reader.read(0, 10)
        if code == 404:
            assert isinstance(caught.value, NotFoundError)
        assert reader.read(0, 10) == BLOB[:10]
    assert len(fake.requests("/blobs/")) == 2


def test_a_read_ends_when_its_time_is_up(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.default = status(503)
    with reading(fake, tmp_path, timeout=0.5) as reader, pytest.raises(RegistryError, match=r"oci\.timeout"):
        reader.read(0, 10)


def test_the_whole_blob_for_a_range_is_kept(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.script(whole())
    with reading(fake, tmp_path) as reader:
        assert reader.read(2 << 20, 5000) == BLOB[2 << 20 : (2 << 20) + 5000]
        assert reader.read(0, SIZE) == BLOB
    assert len(fake.requests("/blobs/")) == 1


def test_a_stop_does_not_wait_for_a_dead_network(fake: FakeRegistry, tmp_path: Path) -> None:
    release, reached = threading.Event(), threading.Event()
    fake.script(stall(release, reached=reached))
    with reading(fake, tmp_path) as reader:

        def fail() -> None:
            with pytest.raises(PyerofsError):
                reader.read(0, 10)

        waiting = threading.Thread(target=fail)
        waiting.start()
        assert reached.wait(20)
        reader.export.store.stop()
        waiting.join(20)
        assert not waiting.is_alive()
    release.set()


def test_threads_that_cannot_be_started(fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the first, and for the chores: those that there are do all."""
    really = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        ours = thread.name.startswith("pyerofs-") or isinstance(thread, threading.Timer)
        if ours and thread.name not in ("pyerofs-fetch-0", "pyerofs-expire"):
            raise RuntimeError("can't start new thread")
        really(thread)

    with monkeypatch.context() as little:
        little.setattr(threading.Thread, "start", start)
        with reading(fake, tmp_path) as reader:
            for offset in range(0, SIZE - 100, 1 << 20):
                assert reader.read(offset, 100) == BLOB[offset : offset + 100]
            assert reader.read(0, SIZE) == BLOB
            assert reader.export.verification == "unverified"
    with reading(fake, tmp_path) as reader:
        assert reader.read(0, SIZE) == BLOB


def test_a_bug_ends_no_thread(fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read fails, with a line for us; the next ones do not wait for ever."""
    monkeypatch.setattr(fetch, "THREADS", 1)
    with reading(fake, tmp_path, timeout=5) as reader:
        for error, words in ((ZeroDivisionError("7 by 0"), "please report it"), (MemoryError(), "out of memory")):
            with monkeypatch.context() as broken:

                def fail(*_: object, error: Exception = error) -> None:
                    raise error

                broken.setattr(fetch, "attempt_run", fail)
                for _ in range(2 * fetch.THREADS):
                    with pytest.raises(UnavailableError, match="Input/output"):
                        reader.read(1 << 20, 100)
            assert any(words in line for line in reader.lines)
        assert reader.read(1 << 20, 100) == BLOB[1 << 20 :][:100]
