"""Reads while the data file cannot be written: answered from memory, no read-ahead, and back to caching when it can."""

from __future__ import annotations

import os
from errno import EBADF, EFBIG, EIO

import pytest

from pyerofs.core import GRANULE, Store
from tests.support import nbdclient as nbd
from tests.support.coreharness import KIB, MIB, WINDOW, Rig, rlimit_fsize

SIZE = 8 * MIB


def unwritable(rig: Rig) -> Store:
    """A store whose data file is open for reading only and empty, as where there is no disk at all."""
    data = os.memfd_create("nothing")
    readonly = rig.reopen(data, os.O_RDONLY)
    os.close(data)
    return rig.open(data_fd=readonly)


@pytest.mark.parametrize("limit", [0, GRANULE, GRANULE + 100])
def test_a_data_file_that_cannot_grow(limit: int) -> None:
    """Nothing is marked present that did not reach the file, and the read is answered all the same."""
    with Rig(SIZE) as rig:
        os.truncate(rig.data_fd, 0)
        client = rig.client()
        client.read(100, 2 * GRANULE)
        run = rig.take()
        with rlimit_fsize(limit):
            rig.land(run, 0, 4 * GRANULE)
            assert client.reply().data == rig.slice(100, 2 * GRANULE)
            assert not rig.store.has(limit // GRANULE * GRANULE, GRANULE)
            assert rig.store.health()[0] == EFBIG
        stats = rig.stats()
        assert (stats.parked, stats.uncached, stats.failed) == (0, 1, 0)
        rig.store.finish(run.id)


@pytest.mark.parametrize("piece", [1000, GRANULE, 10_000, WINDOW])
@pytest.mark.parametrize("place", [(0, 1), (GRANULE - 1, 2), (5000, 60_000), (SIZE - 5000, 5000)])
def test_any_read_in_any_pieces(place: tuple[int, int], piece: int) -> None:
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        client = rig.client(store)
        cookies = client.reads([place] * 3)
        rig.parked(3, store)
        rig.fetch(rig.take(store), store, piece)
        replies = client.replies(3)
        assert [replies[cookie].data for cookie in cookies] == [rig.slice(*place)] * 3
        assert (store.stats().present, store.stats().uncached) == (0, 3)
        assert store.health() == (EBADF, 0)


def test_a_read_that_is_present_in_part() -> None:
    with Rig(SIZE) as rig:
        os.truncate(rig.data_fd, 0)
        rig.preset(1, 2)
        rig.preset(3, 4)
        client = rig.client()
        client.read(10, 6 * GRANULE - 20)
        run = rig.take()
        with rlimit_fsize(4 * GRANULE):
            while rig.stats().parked:
                rig.fetch(run)
                if rig.stats().parked:
                    run = rig.take()
        assert client.reply().data == rig.slice(10, 6 * GRANULE - 20)


def test_a_read_over_several_runs() -> None:
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        client = rig.client(store)
        client.read(MIB, 1)
        first = rig.take(store)
        client.read(MIB - WINDOW, 3 * WINDOW)
        rig.parked(2, store)
        second, third = rig.take(store), rig.take(store)
        for run in (third, first, second):
            rig.fetch(run, store)
        assert {len(reply.data) for reply in client.replies(2).values()} == {1, 3 * WINDOW}


def test_a_read_that_comes_when_half_of_its_bytes_have_passed() -> None:
    """They are fetched again: nobody has kept them."""
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        client = rig.client(store)
        client.read(0, 32 * GRANULE)
        run = rig.take(store)
        rig.land(run, 0, 2 * GRANULE + 7, store)
        late = client.read(GRANULE, 4 * GRANULE)
        rig.parked(2, store)
        again = rig.take(store)
        assert (again.offset, again.length) == (GRANULE, GRANULE)
        rig.fetch_rest(run, 2 * GRANULE + 7, store)
        rig.fetch(again, store)
        assert client.replies(2)[late].data == rig.slice(GRANULE, 4 * GRANULE)


def test_a_read_that_missed_what_has_passed_is_not_forgotten() -> None:
    """Its run was under way when it came, and nothing was cached of what had passed."""
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        client = rig.client(store)
        client.read(0, 4 * GRANULE)
        run = rig.take(store)
        cookie = client.read(2 * GRANULE, GRANULE)
        rig.parked(2, store)
        rig.task(store.take)
        rig.land(run, 0, GRANULE, store)
        assert store.resume(run.id) == (GRANULE, run.length - GRANULE)
        rig.fetch_rest(run, GRANULE, store)
        assert client.replies(2)[cookie].data == rig.slice(2 * GRANULE, GRANULE)
        assert store.stats().runs == 1


def test_runs_are_no_longer_than_what_is_wanted() -> None:
    """After the first one has told; reads that follow one another are one run still, and nothing is read ahead."""
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        client = rig.client(store)
        client.read(4 * MIB, 1)
        rig.fetch(rig.take(store), store)
        client.reply()
        for start in range(0, 2 * MIB, 128 * KIB):
            client.reads([(start, 64 * KIB), (start + 64 * KIB, 64 * KIB)])
            rig.parked(2, store)
            run = rig.take(store)
            assert (run.offset, run.length) == (start, 128 * KIB)
            rig.fetch(run, store)
            client.replies(2)
        assert store.stats().runs == 17


def test_the_rest_of_a_run_that_nobody_waits_for_is_not_wanted() -> None:
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        client = rig.client(store)
        client.read(0, GRANULE)
        run = rig.take(store)
        assert run.length == WINDOW
        assert not rig.land(run, 0, GRANULE, store)
        store.finish(run.id)
        client.reply()


def test_caching_comes_back() -> None:
    """A mebibyte written without an error: not each piece that happens to find room."""
    with Rig(SIZE) as rig:
        os.truncate(rig.data_fd, 0)
        client = rig.client()
        with rlimit_fsize(0):
            client.read(0, 1)
            run = rig.take()
            rig.fetch(run)
        assert client.reply().data == rig.slice(0, 1)
        client.read(MIB, MIB)
        run = rig.take()
        assert run.length == MIB
        rig.land(run, MIB, MIB - GRANULE)
        assert rig.store.health()[0] == EFBIG
        rig.land(run, 2 * MIB - GRANULE, GRANULE)
        assert rig.store.health()[0] == 0
        rig.store.finish(run.id)
        assert client.reply().data == rig.slice(MIB, MIB)
        assert rig.store.has(MIB, MIB)
        assert rig.stats().uncached == 1


def test_failure_of_the_source_is_still_a_failure() -> None:
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        client = rig.client(store)
        client.read(0, 2 * GRANULE)
        run = rig.take(store)
        rig.land(run, 0, GRANULE, store)
        store.finish(run.id, EIO)
        assert client.reply().error == nbd.EIO
        client.read(0, 2 * GRANULE)
        rig.fetch(rig.take(store), store)
        assert client.reply().data == rig.slice(0, 2 * GRANULE)


def test_sums_that_cannot_be_written() -> None:
    """A granule without its sum is not present, though its bytes are in the file."""
    with Rig(SIZE) as rig:
        assert rig.sums_fd is not None
        readonly = rig.reopen(rig.sums_fd, os.O_RDONLY)
        store = rig.open(sums_fd=readonly)
        client = rig.client(store)
        client.read(0, GRANULE)
        rig.fetch(rig.take(store), store)
        assert client.reply().data == rig.slice(0, GRANULE)
        assert store.stats().present == 0


# Threads


@pytest.mark.parametrize("offset, length", [(0, 1), (77, 3 * MIB), (SIZE - 10, 10)])
def test_a_thread_reads(offset: int, length: int) -> None:
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        rig.source(store)
        buffer = bytearray(length)
        assert store.read_into(buffer, offset, 20) == length
        assert buffer == rig.slice(offset, length)


def test_a_thread_keeps_what_came_before_its_time_was_up() -> None:
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        buffer = bytearray(4 * GRANULE)
        reading = rig.task(store.read_into, buffer, 100, 0.3)
        rig.parked(1, store)
        run = rig.take(store)
        rig.land(run, 0, 2 * GRANULE + 50, store)
        assert reading.result() == 2 * GRANULE - 100
        assert buffer[: 2 * GRANULE - 100] == rig.slice(100, 2 * GRANULE - 100)
        store.finish(run.id)


def test_sendfile_to_a_file() -> None:
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        rig.source(store)
        out = os.memfd_create("out")
        assert store.sendfile(out, 123, SIZE - 123, 20) == SIZE - 123
        assert os.pread(out, SIZE, 0) == rig.data[123:]
        os.close(out)


def test_a_thread_waits() -> None:
    with Rig(SIZE) as rig:
        store = unwritable(rig)
        waiting = rig.task(store.wait, 0, GRANULE, 20)
        rig.parked(1, store)
        rig.fetch(rig.take(store), store)
        assert waiting.result() is True


# Memory


def test_what_a_connection_may_ask_for_at_once_is_bounded() -> None:
    """64 MiB: the next read is taken in when there is room, and what is ready is sent before that is waited for."""
    with Rig(80 * MIB, data=b"\x5a" * (80 * MIB)) as rig:
        rig.preset(79 * 256, 80 * 256)
        client = rig.client()
        cookies = client.reads([(n * MIB, MIB) for n in range(64)])
        hit = client.read(79 * MIB, 100)
        late = client.read(64 * MIB, MIB)
        assert client.reply() == (hit, 0, rig.slice(79 * MIB, 100))
        rig.parked(64)
        client_of_another = rig.client()
        client_of_another.read(70 * MIB, 1)
        rig.parked(65)
        for _ in range(2):
            rig.source()
        replies = client.replies(65)
        assert set(replies) == {*cookies, late}
        assert all(len(reply.data) == MIB for reply in replies.values())
