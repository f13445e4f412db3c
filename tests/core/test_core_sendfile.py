"""Chunked sendfile: to every kind of descriptor, as the bytes become present."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from errno import EAGAIN, EBADF, EINVAL, EIO, EPIPE, ESHUTDOWN
from pathlib import Path

import pytest

from pyerofs.core import GRANULE
from tests.support.coreharness import KIB, MIB, Rig, Task, until

SIZE = 3 * MIB + 777
CHUNK = MIB
SHORT = 0.02  # seconds: time that is meant to pass
RANGES = [(0, SIZE), (0, 1), (SIZE - 1, 1), (4095, 2), (1, CHUNK), (CHUNK - 1, CHUNK + 2)]


@pytest.fixture(scope="module")
def full() -> Iterator[Rig]:
    with Rig(SIZE, full=True) as rig:
        yield rig


def read_all(fd: int, count: int) -> bytes:
    parts = []
    while count:
        parts.append(os.read(fd, count))
        if not parts[-1]:
            break
        count -= len(parts[-1])
    return b"".join(parts)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = list(os.pipe())
    yield ends[0], ends[1]
    for fd in ends:
        os.close(fd)


@pytest.mark.parametrize("offset, count", RANGES)
def test_to_a_pipe(full: Rig, pipe: tuple[int, int], offset: int, count: int) -> None:
    reading = Task(read_all, pipe[0], count)
    assert full.store.sendfile(pipe[1], offset, count, 20) == count
    assert reading.result() == full.slice(offset, count)


@pytest.mark.parametrize("offset, count", RANGES)
@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_to_a_file(full: Rig, tmp_path: Path, offset: int, count: int, flags: int) -> None:
    """sendfile(2) refuses a file that is open for appending: it gets a plain copy, behind what it has."""
    path = tmp_path / "out"
    path.write_bytes(b"before")
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        os.lseek(fd, 0, os.SEEK_END)
        sent = 0
        while sent < count:  # a plain copy may be a short one
            sent += full.store.sendfile(fd, offset + sent, count - sent, 20)
    finally:
        os.close(fd)
    assert path.read_bytes() == b"before" + full.slice(offset, count)


def test_to_a_socket(full: Rig) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reading = Task(read_all, theirs.fileno(), SIZE)
        assert full.store.sendfile(ours.fileno(), 0, SIZE, 20) == SIZE
        assert reading.result() == full.data


def test_to_dev_null(full: Rig) -> None:
    with open("/dev/null", "wb") as null:
        assert full.store.sendfile(null.fileno(), 0, SIZE, 20) == SIZE
    assert full.stats().served >= SIZE


def test_a_full_pipe_takes_what_fits(full: Rig, pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    sent = full.store.sendfile(pipe[1], 0, SIZE, 20)
    assert 0 < sent < SIZE
    assert full.store.sendfile(pipe[1], sent, SIZE - sent, 20) == 0
    assert read_all(pipe[0], sent) == full.slice(0, sent)
    again = full.store.sendfile(pipe[1], sent, SIZE - sent, 20)
    assert read_all(pipe[0], again) == full.slice(sent, again)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_closed_reader(full: Rig, kind: str) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    with ours, theirs:
        theirs.close()
        os.close(reader)
        try:
            with pytest.raises(OSError) as caught:
                full.store.sendfile(writer if kind == "pipe" else ours.fileno(), 0, SIZE, 20)
            assert caught.value.errno == EPIPE
        finally:
            os.close(writer)


def test_a_reader_that_closes_on_the_way(full: Rig) -> None:
    """What was sent is told; the error comes with the next call."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sending = Task(full.store.sendfile, ours.fileno(), 0, SIZE, 20)
        theirs.recv(1, socket.MSG_WAITALL)
        theirs.close()
        try:
            assert 0 < sending.result() < SIZE
        except OSError as error:
            assert error.errno == EPIPE


@pytest.mark.parametrize(
    "offset, count",
    [(0, 0), (SIZE, 0), (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (2**64 - 1, 1), (1, 2**64 - 1), (2**63, 2**63)],
)
def test_a_range_that_is_not_the_blob_s(full: Rig, pipe: tuple[int, int], offset: int, count: int) -> None:
    with pytest.raises(OSError) as caught:
        full.store.sendfile(pipe[1], offset, count, 20)
    assert caught.value.errno == EINVAL


@pytest.mark.parametrize("end", ["unknown", "reading"])
def test_a_descriptor_that_cannot_be_written(full: Rig, pipe: tuple[int, int], end: str) -> None:
    with pytest.raises(OSError) as caught:
        full.store.sendfile(1_000_000 if end == "unknown" else pipe[0], 0, 10, 20)
    assert caught.value.errno == EBADF


def test_a_cut_data_file() -> None:
    with Rig(SIZE, full=True) as rig, open("/dev/null", "wb") as null:
        os.truncate(rig.data_fd, 10_000)
        assert rig.store.sendfile(null.fileno(), 0, SIZE, 20) == 10_000
        for offset in (10_000, 2 * MIB):
            with pytest.raises(OSError) as caught:
                rig.store.sendfile(null.fileno(), offset, 100, 20)
            assert caught.value.errno == EIO


def test_a_cut_data_file_that_is_copied(tmp_path: Path) -> None:
    with Rig(SIZE, full=True) as rig, (tmp_path / "out").open("ab") as out:
        os.truncate(rig.data_fd, 10_000)
        assert rig.store.sendfile(out.fileno(), 0, 10_000, 20) == 10_000
        with pytest.raises(OSError) as caught:
            rig.store.sendfile(out.fileno(), 10_000, 100, 20)
        assert caught.value.errno == EIO


# As bytes become present


def test_each_chunk_is_sent_when_it_is_there(pipe: tuple[int, int]) -> None:
    with Rig(SIZE) as rig:
        sending = rig.task(rig.store.sendfile, pipe[1], 100, 2 * CHUNK, 20)
        reading = Task(read_all, pipe[0], CHUNK)
        rig.parked(1)
        run = rig.take()
        assert run.offset == 0
        rig.land(run, 0, CHUNK)
        os.set_blocking(pipe[0], False)
        try:
            with pytest.raises(BlockingIOError):
                os.read(pipe[0], 1)
        finally:
            os.set_blocking(pipe[0], True)
        rig.land(run, CHUNK, GRANULE)
        assert reading.result() == rig.slice(100, CHUNK)
        rig.parked(1)
        assert sending.is_alive()
        rig.source()
        reading = Task(read_all, pipe[0], CHUNK)
        rig.store.finish(run.id)
        assert sending.result() == 2 * CHUNK
        assert reading.result() == rig.slice(100 + CHUNK, CHUNK)


def test_time_runs_out_before_anything_came(pipe: tuple[int, int]) -> None:
    with Rig(SIZE) as rig:
        began = time.monotonic()
        assert rig.store.sendfile(pipe[1], 0, 10, SHORT) == 0
        assert time.monotonic() - began >= SHORT - 0.001
        rig.parked(0)


def test_time_runs_out_on_the_way() -> None:
    with Rig(SIZE) as rig, open("/dev/null", "wb") as null:
        rig.preset(0, CHUNK // GRANULE)
        assert rig.store.sendfile(null.fileno(), 5, SIZE - 5, SHORT) == 0, "the first chunk is waited for as one"
        assert rig.store.sendfile(null.fileno(), 0, SIZE, SHORT) == CHUNK


def test_what_is_present_needs_no_time() -> None:
    with Rig(SIZE) as rig, open("/dev/null", "wb") as null:
        rig.preset(0, rig.granules)
        assert rig.store.sendfile(null.fileno(), 0, SIZE, 0) == SIZE


@pytest.mark.parametrize("landed", [0, CHUNK])
def test_the_source_fails(landed: int) -> None:
    with Rig(SIZE) as rig, open("/dev/null", "wb") as null:
        rig.preset(0, landed // GRANULE)
        sending = rig.task(rig.store.sendfile, null.fileno(), 0, SIZE, 20)
        rig.parked(1)
        rig.store.finish(rig.take().id, EIO)
        if landed:
            assert sending.result() == landed
        else:
            with pytest.raises(OSError) as caught:
                sending.result()
            assert caught.value.errno == EIO


def test_the_store_stops_on_the_way() -> None:
    with Rig(SIZE) as rig, open("/dev/null", "wb") as null:
        sending = rig.task(rig.store.sendfile, null.fileno(), 0, SIZE, 20)
        rig.parked(1)
        rig.store.stop()
        with pytest.raises(OSError) as caught:
            sending.result()
        assert caught.value.errno == ESHUTDOWN


def test_many_threads_send_while_the_blob_arrives() -> None:
    with Rig(SIZE) as rig:
        pairs = [socket.socketpair() for _ in range(6)]
        places = [(n * 100_000, SIZE - n * 200_000) for n in range(6)]
        sending = [
            rig.task(rig.store.sendfile, pair[0].fileno(), *place, 20)
            for pair, place in zip(pairs, places, strict=True)
        ]
        reading = [Task(read_all, pair[1].fileno(), place[1]) for pair, place in zip(pairs, places, strict=True)]
        until(lambda: rig.stats().parked == 6)
        for _ in range(2):
            rig.source()
        assert [task.result() for task in sending] == [place[1] for place in places]
        assert [task.result() for task in reading] == [rig.slice(*place) for place in places]
        assert rig.stats().landed <= SIZE + 64 * KIB * rig.stats().runs
        for pair in pairs:
            for end in pair:
                end.close()


def test_a_full_pipe_is_not_a_timeout_error(full: Rig, pipe: tuple[int, int]) -> None:
    """EAGAIN never reaches the caller as an exception, whichever end of the matter it came from."""
    os.set_blocking(pipe[1], False)
    while True:
        try:
            os.write(pipe[1], bytes(4096))
        except BlockingIOError as error:
            assert error.errno == EAGAIN
            break
    assert full.store.sendfile(pipe[1], 0, 10, 0) == 0
