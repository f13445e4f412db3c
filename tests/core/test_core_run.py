"""Runs: taking, landing, resuming, ending; how long they are; what their failure means and for whom."""

from __future__ import annotations

import os
from errno import EINVAL, EIO, ENOENT

import pytest

from pyerofs.core import DEMAND, GRANULE, Run
from tests.support import nbdclient as nbd
from tests.support.coreharness import KIB, MIB, WINDOW, Rig, bits_of, pattern

SIZE = 8 * MIB


def miss(rig: Rig, offset: int, length: int = 1) -> Run:
    """The run that a read of that range causes, in a store where nothing else is wanted."""
    before = rig.stats().parked
    rig.client().read(offset, length)
    rig.parked(before + 1)
    return rig.take()


# What a run is


def test_a_single_miss_asks_for_a_small_run() -> None:
    with Rig(SIZE) as rig:
        run = miss(rig, 5 * MIB + 77)
        assert (run.offset, run.length, run.kind) == (5 * MIB, WINDOW, DEMAND)
        assert (rig.stats().runs, rig.stats().flights) == (1, 1)


def test_a_long_read_is_one_run() -> None:
    with Rig(SIZE) as rig:
        run = miss(rig, 1, 3 * MIB)
        assert (run.offset, run.length) == (0, 3 * MIB + GRANULE)


@pytest.mark.parametrize("size", [1, GRANULE + 1, WINDOW - 1])
def test_a_run_ends_with_the_blob(size: int) -> None:
    with Rig(size) as rig:
        run = miss(rig, size - 1)
        start = (size - 1) // GRANULE * GRANULE
        assert (run.offset, run.length) == (start, size - start)
        rig.fetch(run)
        assert bits_of(rig.store.copy_map()) == {start // GRANULE}


def test_a_run_starts_at_what_is_absent() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, 3)
        run = miss(rig, 0, 4 * GRANULE)
        assert run.offset == 3 * GRANULE


def test_a_run_goes_over_a_short_present_stretch_but_not_over_a_long_one() -> None:
    with Rig(SIZE) as rig:
        rig.preset(1, 17)  # PLAN_BRIDGE: 64 KiB
        rig.preset(20, 37)
        run = miss(rig, 0)
        assert (run.offset, run.length) == (0, 20 * GRANULE)


def test_a_run_does_not_end_with_what_is_present() -> None:
    with Rig(SIZE) as rig:
        rig.preset(30, 32)
        assert miss(rig, 0).length == 30 * GRANULE


def test_a_run_ends_before_another_one() -> None:
    with Rig(SIZE) as rig:
        second = miss(rig, 10 * GRANULE)
        first = miss(rig, 0, 12 * GRANULE)
        assert (second.offset, first.offset, first.length) == (10 * GRANULE, 0, 10 * GRANULE)


def test_one_run_for_any_number_of_waiters() -> None:
    """The taker that would find a second run for these gets the one for a read that came after them all."""
    with Rig(SIZE) as rig:
        clients = [rig.client() for _ in range(4)]
        for client in clients:
            client.reads([(n * 777, 1000) for n in range(25)])
        rig.parked(100)
        run = rig.take()
        far = miss(rig, 7 * MIB)
        assert far.offset == 7 * MIB
        rig.fetch(run)
        for client in clients:
            assert {r.data for r in client.replies(25).values()} == {rig.slice(n * 777, 1000) for n in range(25)}
        assert (rig.stats().runs, rig.stats().misses) == (2, 101)


def test_the_rest_of_a_read_that_is_partly_in_flight_is_its_own_run() -> None:
    with Rig(SIZE) as rig:
        first = miss(rig, WINDOW, 1)
        second = miss(rig, 0, 3 * WINDOW)
        third = rig.take()
        assert [(r.offset, r.length) for r in (first, second)] == [(WINDOW, WINDOW), (0, WINDOW)]
        assert third.offset == 2 * WINDOW
        assert rig.stats().flights == 3
        for run in (third, first, second):
            rig.fetch(run)
        rig.parked(0)


def test_the_oldest_read_is_fetched_first() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        for n in (5, 1, 7, 3):
            client.read(n * MIB, 1)
        rig.parked(4)
        assert [rig.take().offset // MIB for _ in range(4)] == [5, 1, 7, 3]


def test_no_more_flights_than_there_is_room_for() -> None:
    """The 65th taker waits until one of the 64 runs has ended."""
    with Rig(65 * MIB, data=pattern(MIB) * 65) as rig:
        client = rig.client()
        client.reads((n * MIB, 1) for n in range(65))
        rig.parked(65)
        runs = [rig.take() for _ in range(64)]
        late = rig.task(rig.store.take)
        assert len({run.id for run in runs}) == rig.stats().flights == 64
        rig.fetch(runs[9])
        assert late.result().offset == 64 * MIB


# Landing


def test_land_errors() -> None:
    with Rig(SIZE) as rig:
        run = miss(rig, MIB)
        cases = [
            (run.id + 1, run.offset, 1, ENOENT),
            (0, run.offset, 1, ENOENT),
            (run.id, 0, GRANULE, EINVAL),
            (run.id, run.offset + 1, GRANULE, EINVAL),
            (run.id, run.offset - GRANULE, GRANULE, EINVAL),
            (run.id, run.offset, run.length + 1, EINVAL),
            (run.id, run.offset + run.length, 1, EINVAL),
        ]
        for ident, offset, length, error in cases:
            with pytest.raises(OSError) as caught:
                rig.store.land(ident, offset, bytes(length))
            assert caught.value.errno == error, (offset, length)
        assert (rig.stats().landed, rig.stats().present) == (0, 0)
        assert os.pread(rig.data_fd, run.length, run.offset) == bytes(run.length)
        rig.fetch(run)
        with pytest.raises(OSError) as caught:
            rig.store.land(run.id, run.offset, b"x")
        assert caught.value.errno == ENOENT


@pytest.mark.parametrize("piece", [1 * KIB + 1, GRANULE - 1, GRANULE, GRANULE + 1, 16 * KIB - 3])
def test_pieces_that_split_granules(piece: int) -> None:
    with Rig(SIZE) as rig:
        run = miss(rig, 0, WINDOW)
        for offset in range(0, WINDOW, piece):
            assert rig.land(run, offset, min(piece, WINDOW - offset)), "an end that was foreseen is no reason to stop"
            done = min(offset + piece, WINDOW)
            assert bits_of(rig.store.copy_map()) == set(range(done // GRANULE))
        assert os.pread(rig.data_fd, WINDOW, 0) == rig.slice(0, WINDOW)
        rig.parked(0)


def test_an_empty_piece_changes_nothing() -> None:
    with Rig(SIZE) as rig:
        run = miss(rig, 0, WINDOW)
        assert rig.store.land(run.id, 0, b"")
        rig.land(run, 0, 100)
        assert rig.store.land(run.id, 100, b"")
        assert rig.stats().present == 0


def test_land_takes_any_buffer() -> None:
    with Rig(SIZE) as rig:
        run = miss(rig, 0, 3 * GRANULE)
        view = memoryview(rig.data)
        rig.store.land(run.id, 0, view[:GRANULE])
        rig.store.land(run.id, GRANULE, bytearray(view[GRANULE : 2 * GRANULE]))
        assert rig.store.has(0, 2 * GRANULE)
        assert os.pread(rig.data_fd, 2 * GRANULE, 0) == rig.slice(0, 2 * GRANULE)


def test_present_granules_are_not_written_again() -> None:
    with Rig(SIZE) as rig:
        ours = b"\xa5" * GRANULE
        rig.preset(1, 2, ours)
        rig.preset(4, 6, ours * 2)
        run = miss(rig, 0, WINDOW)
        for offset in range(0, WINDOW, 5000):
            rig.land(run, offset, min(5000, WINDOW - offset))
        rig.store.finish(run.id)
        expected = bytearray(rig.slice(0, WINDOW))
        for granule in (1, 4, 5):
            expected[granule * GRANULE : (granule + 1) * GRANULE] = ours
        assert os.pread(rig.data_fd, WINDOW, 0) == expected
        assert rig.stats().landed == WINDOW


def test_no_more_is_wanted_when_the_rest_is_there() -> None:
    with Rig(SIZE) as rig:
        run = miss(rig, 0, WINDOW)
        rig.preset(3, 32)
        assert rig.land(run, 0, 2 * GRANULE + 1)
        assert not rig.land(run, 2 * GRANULE + 1, GRANULE - 1)
        rig.store.finish(run.id)
        rig.parked(0)


# Ending and resuming


def test_failure_reaches_those_who_wait_for_the_unlanded_part_only() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        landed, split, unlanded = client.reads([(0, GRANULE), (GRANULE, 2), (2 * GRANULE, 5)])
        elsewhere = client.read(MIB, 1)
        rig.parked(4)
        run, other = rig.take(), rig.take()
        rig.land(run, 0, GRANULE + 100)  # the second read's two bytes are in, but not their granule
        assert rig.store.waiters(run.id) == 2
        rig.store.finish(run.id, EIO)
        replies = client.replies(3)
        assert [replies[cookie].error for cookie in (landed, split, unlanded)] == [0, nbd.EIO, nbd.EIO]
        assert (rig.stats().failed, rig.stats().parked) == (2, 1)
        rig.fetch(other)
        assert client.reply().cookie == elsewhere
        client.reads([(GRANULE, 2), (2 * GRANULE, 5)])
        again = rig.take()
        assert again.offset == GRANULE
        rig.fetch(again)
        assert {r.data for r in client.replies(2).values()} == {rig.slice(GRANULE, 2), rig.slice(2 * GRANULE, 5)}


def test_a_failure_of_a_part_leaves_what_lies_behind_it_to_another_run() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        landed, bad, over, behind = client.reads(
            [(0, GRANULE), (GRANULE, 2), (2 * GRANULE - 1, 2 * GRANULE), (4 * GRANULE, 5)]
        )
        rig.parked(4)
        run = rig.take()
        rig.land(run, 0, GRANULE)
        rig.store.finish(run.id, EIO, 3 * GRANULE)
        replies = client.replies(3)
        assert [replies[cookie].error for cookie in (landed, bad, over)] == [0, nbd.EIO, nbd.EIO]
        again = rig.take()
        assert again.offset == 4 * GRANULE
        rig.fetch(again)
        assert client.reply() == (behind, 0, rig.slice(4 * GRANULE, 5))


@pytest.mark.parametrize("until", [1, GRANULE, WINDOW, SIZE])
def test_a_part_that_is_none_of_what_is_left_is_the_whole_run(until: int) -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.reads([(2 * GRANULE, 1), (WINDOW - 1, 1)])
        rig.parked(2)
        run = rig.take()
        rig.land(run, run.offset, GRANULE)
        rig.store.finish(run.id, EIO, until)
        assert sorted(reply.error for reply in client.replies(2).values()) == [0, nbd.EIO]


def test_a_read_over_two_runs_fails_with_either() -> None:
    with Rig(SIZE) as rig:
        first = miss(rig, WINDOW)
        client = rig.client()
        client.read(WINDOW - GRANULE, 2 * GRANULE)
        rig.parked(2)
        second = rig.take()
        rig.fetch(second)
        assert rig.stats().parked == 2
        rig.store.finish(first.id, EIO)
        assert client.reply().error == nbd.EIO
        rig.parked(0)


@pytest.mark.parametrize("landed", [0, 100, GRANULE, GRANULE + 100])
def test_an_incomplete_run_that_did_not_fail_is_fetched_anew(landed: int) -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(0, 2 * GRANULE)
        run = rig.take()
        rig.land(run, 0, landed)
        rig.store.finish(run.id)
        assert rig.stats().parked == 1
        again = rig.take()
        assert again.offset == landed // GRANULE * GRANULE
        assert again.id != run.id
        rig.fetch(again)
        assert client.reply().data == rig.slice(0, 2 * GRANULE)


def test_finish_and_resume_and_waiters_of_an_unknown_run() -> None:
    with Rig(SIZE) as rig:
        run = miss(rig, 0)
        rig.store.finish(run.id)
        for call in (rig.store.finish, rig.store.resume, rig.store.waiters):
            for ident in (run.id, 0, 99):
                with pytest.raises(OSError) as caught:
                    call(ident)
                assert caught.value.errno == ENOENT


@pytest.mark.parametrize("landed", [0, 1, GRANULE - 1, GRANULE, 2 * GRANULE + 5])
def test_resume_starts_at_a_granule(landed: int) -> None:
    """A granule is never put together from two answers: its first half is landed again."""
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(MIB, WINDOW)
        run = rig.take()
        rig.store.land(run.id, MIB, b"\xee" * (landed % GRANULE) if landed < GRANULE else rig.slice(MIB, landed))
        start = MIB + landed // GRANULE * GRANULE
        assert rig.store.resume(run.id) == (start, MIB + WINDOW - start)
        rig.fetch_rest(run, start)
        assert client.reply().data == rig.slice(MIB, WINDOW)
        assert rig.stats().runs == 1


def test_resume_with_the_whole_blob() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(MIB, GRANULE)
        run = rig.take()
        rig.land(run, MIB, 100)
        assert rig.store.resume(run.id, whole=True) == (0, SIZE)
        client.read(7 * MIB, 10)
        rig.parked(2)
        assert rig.store.waiters(run.id) == 2
        for offset in range(0, SIZE, 50_000):
            rig.land(run, offset, min(50_000, SIZE - offset))
        rig.store.finish(run.id)
        assert {len(r.data) for r in client.replies(2).values()} == {GRANULE, 10}
        assert rig.stats().present == SIZE
        assert rig.stats().runs == 1


def test_a_complete_store_needs_no_run() -> None:
    with Rig(3 * GRANULE + 1) as rig:
        rig.fetch(miss(rig, 0, rig.size))
        assert rig.client().call(nbd.CMD_READ, 0, rig.size).data == rig.data
        assert rig.stats().hits == 1
