"""Filling: what nobody has asked for comes in order, one run at a time, and never in the way of a read."""

from __future__ import annotations

import os
from errno import EINVAL

import pytest

from pyerofs.core import DEMAND, FILL, GRANULE, IDLE, Run, Store
from tests.support.coreharness import KIB, MIB, Rig, Task, bits_of, until

SIZE = 8 * MIB + 77
SOON = 0.001  # seconds


def fill(rig: Rig, kind: int = FILL, length: int = MIB, store: Store | None = None, pause: float = SOON) -> Task:
    return rig.task((store or rig.store).take_fill, kind, length, pause)


def take(rig: Rig, kind: int = FILL, length: int = MIB) -> Run:
    run = fill(rig, kind, length).result()
    assert isinstance(run, Run)
    return run


@pytest.mark.parametrize("kind", [FILL, IDLE])
def test_everything_comes_once_and_in_order(kind: int) -> None:
    with Rig(SIZE) as rig:
        at = 0
        while at < SIZE:
            run = take(rig, kind)
            assert (run.offset, run.length, run.kind) == (at, min(MIB, SIZE - at), kind)
            rig.fetch(run)
            at += run.length
        assert rig.stats().present == SIZE == rig.stats().landed
        assert os.pread(rig.data_fd, SIZE, 0) == rig.data


def test_what_is_present_is_left_out() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, 10)
        rig.preset(100, 300)
        run = take(rig)
        assert (run.offset, run.length) == (10 * GRANULE, 90 * GRANULE)
        rig.fetch(run)
        assert take(rig).offset == 300 * GRANULE


def test_what_is_on_its_way_is_left_out() -> None:
    with Rig(SIZE) as rig:
        rig.client().read(0, 100)
        rig.parked(1)
        demand = rig.take()
        run = take(rig)
        assert run.offset == demand.length
        assert take(rig).offset == run.offset + run.length


def test_a_read_that_falls_into_a_run_waits_for_it_alone() -> None:
    with Rig(SIZE) as rig:
        run = take(rig)
        client = rig.client()
        client.read(300 * KIB, 100)
        rig.parked(1)
        taker = rig.task(rig.store.take)
        assert rig.land(run, 0, 512 * KIB)
        rig.parked(0)
        assert client.reply().data == rig.slice(300 * KIB, 100)
        assert rig.stats().runs == 1
        rig.fetch_rest(run, 512 * KIB)
        rig.store.stop()
        assert taker.result() is None


def test_demand_is_taken_beside_a_run() -> None:
    with Rig(SIZE) as rig:
        take(rig)
        rig.client().read(5 * MIB, 100)
        rig.parked(1)
        demand = rig.take()
        assert (demand.offset, demand.kind) == (5 * MIB, DEMAND)


def test_a_run_that_failed_is_left_to_those_who_wait_for_it() -> None:
    with Rig(SIZE) as rig:
        run = take(rig)
        rig.client().read(0, 100)
        rig.parked(1)
        rig.store.finish(run.id)
        demand = rig.take()
        assert (demand.offset, demand.kind) == (0, DEMAND)
        rig.fetch(demand)
        rig.parked(0)


def test_one_that_waits_for_quiet_gives_way_to_a_read() -> None:
    with Rig(SIZE) as rig:
        run = take(rig, IDLE)
        assert rig.land(run, 0, 64 * KIB)
        rig.client().read(5 * MIB, 100)
        rig.parked(1)
        assert not rig.land(run, 64 * KIB, 64 * KIB)
        rig.store.finish(run.id)
        assert bits_of(rig.store.copy_map()) == set(range(32))


def test_one_that_waits_for_quiet_goes_on_for_a_read_of_its_own() -> None:
    with Rig(SIZE) as rig:
        run = take(rig, IDLE)
        rig.client().read(512 * KIB, 100)
        rig.client().read(5 * MIB, 100)
        rig.parked(2)
        assert rig.land(run, 0, 512 * KIB)
        assert not rig.land(run, 512 * KIB, 64 * KIB)  # that read has been answered
        rig.parked(1)


def test_one_that_does_not_wait_for_quiet_goes_on() -> None:
    with Rig(SIZE) as rig:
        run = take(rig, FILL)
        rig.client().read(5 * MIB, 100)
        rig.parked(1)
        assert rig.land(run, 0, 64 * KIB)


@pytest.mark.parametrize("pause", [SOON, 3600])
def test_idle_begins_when_nobody_waits(pause: float) -> None:
    with Rig(SIZE) as rig:
        rig.client().read(5 * MIB, 100)
        rig.parked(1)
        demand = rig.take()
        waiting = fill(rig, IDLE, pause=pause)
        assert rig.stats().runs == 1
        rig.fetch(demand)
        if pause == SOON:
            assert waiting.result().offset == 0
        else:
            # It looks again in an hour: until then only the end of the store wakes it.
            rig.store.stop()
            assert waiting.result() is None
            assert rig.stats().runs == 1


def test_nothing_is_given_while_a_read_is_parked() -> None:
    """Nobody fetches it, so it never becomes quiet; the filler looks again and again."""
    with Rig(SIZE) as rig:
        rig.client().read(5 * MIB, 100)
        rig.parked(1)
        waiting = fill(rig, IDLE)
        rig.client().read(6 * MIB, 100)
        rig.parked(2)
        rig.store.stop()
        assert waiting.result() is None
        assert rig.stats().runs == 0


def test_a_complete_blob_sleeps_until_the_end() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, rig.granules)
        waiting = fill(rig, pause=3600)
        rig.store.stop()
        assert waiting.result() is None
    with Rig(SIZE, full=True) as rig:
        waiting = fill(rig, pause=3600)
        rig.store.stop()
        assert waiting.result() is None


def test_what_another_store_brings_is_not_asked_for() -> None:
    with Rig(2 * MIB) as rig:
        other = rig.open()
        rig.fetch(take(rig))
        run = fill(rig, store=other).result()
        assert run.offset == MIB
        rig.fetch(run, other)
        waiting = fill(rig, pause=3600)
        rig.store.stop()
        assert waiting.result() is None


def test_runs_are_no_longer_than_the_source_is_fast() -> None:
    """The ceiling of the windows holds for filling too: a read that falls into a run must not wait for long."""
    with Rig(40 * MIB) as rig:
        assert take(rig, length=64 * MIB).length == 16 * MIB


def test_invalid() -> None:
    with Rig(SIZE) as rig:
        for kind, length in ((DEMAND, MIB), (7, MIB), (FILL, 0), (FILL, GRANULE - 1)):
            with pytest.raises(OSError) as caught:
                rig.store.take_fill(kind, length, 0)
            assert caught.value.errno == EINVAL


# What has come unasked


def test_what_came_unasked_lands_where_nothing_is() -> None:
    """Around what is present, and around what is on its way."""
    with Rig(SIZE) as rig:
        rig.preset(4, 40)
        rig.client().read(100 * GRANULE, 100)
        rig.parked(1)
        demand = rig.take()
        assert demand.offset == 100 * GRANULE
        landed = []
        while run := rig.store.take_within(0, 200 * GRANULE):
            landed.append((run.offset // GRANULE, run.length // GRANULE, run.kind))
            rig.fetch(run)
        assert landed == [(0, 4, FILL), (40, 60, FILL), (132, 68, FILL)]
        assert rig.store.stats().runs == 1  # no request was made for them
        rig.fetch(demand)
        assert os.pread(rig.data_fd, 200 * GRANULE, 0)[40 * GRANULE :] == rig.data[40 * GRANULE : 200 * GRANULE]


def test_a_read_that_waits_is_answered_by_what_came_unasked() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(SIZE - 50, 50)
        rig.parked(1)
        run = rig.store.take_within(SIZE // GRANULE * GRANULE, SIZE)
        assert run is not None and run.offset + run.length == SIZE
        rig.fetch(run)
        rig.parked(0)
        assert rig.store.take_within(SIZE // GRANULE * GRANULE, SIZE) is None


@pytest.mark.parametrize(("offset", "end"), [(1, GRANULE), (0, 1), (GRANULE, GRANULE), (0, SIZE + 1)])
def test_what_is_no_stretch_of_granules_is_invalid(offset: int, end: int) -> None:
    with Rig(SIZE) as rig, pytest.raises(OSError) as caught:
        rig.store.take_within(offset, end)
    assert caught.value.errno == EINVAL


# Forgetting


def test_forget_all() -> None:
    with Rig(SIZE) as rig:
        for _ in range(9):
            rig.fetch(take(rig))
        client = rig.client()
        assert rig.store.has(0, SIZE)
        rig.store.forget_all()
        assert rig.stats().present == 0
        assert not any(rig.store.copy_map())
        client.read(100, 100)
        rig.parked(1)  # the short way for complete blobs is closed
        rig.fetch(rig.take())
        rig.parked(0)


def test_forgetting_wakes_a_filler() -> None:
    with Rig(MIB) as rig:
        rig.fetch(take(rig))
        waiting = fill(rig, pause=3600)
        rig.store.forget_all()
        assert waiting.result().offset == 0


def test_a_read_that_lost_what_it_had_is_fetched_anew() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, 1)
        rig.client().read(0, 2 * GRANULE)
        rig.parked(1)
        run = rig.take()
        assert run.offset == GRANULE
        rig.store.forget_all()
        again = rig.take()
        assert (again.offset, again.length) == (0, GRANULE)
        rig.fetch(run)
        rig.parked(1)
        rig.fetch(again)
        rig.parked(0)


def test_forgetting_without_a_map() -> None:
    with Rig(SIZE, full=True) as rig:
        with pytest.raises(OSError) as caught:
            rig.store.forget_all()
        assert caught.value.errno == EINVAL
        assert rig.store.has(0, SIZE)


def test_filling_reading_and_forgetting_at_once() -> None:
    with Rig(4 * MIB) as rig:
        rig.source()
        task = rig.task(_fill_all, rig)
        for n in range(200):
            offset = n * 20_011 % (rig.size - 100)
            assert rig.store.wait(offset, 100, 20)
            if n % 20 == 19:
                rig.store.forget_all()
        until(lambda: rig.stats().present == rig.size, "all of it is there again")
        assert os.pread(rig.data_fd, rig.size, 0) == rig.data
        rig.store.stop()
        task.result()


def _fill_all(rig: Rig) -> None:
    while run := rig.store.take_fill(IDLE, 256 * KIB, SOON):
        try:
            rig.fetch(run)
        except BrokenPipeError:  # stopped meanwhile
            return


def test_idle_does_not_begin_with_the_store_itself() -> None:
    """Who opens one is about to read."""
    with Rig(SIZE) as rig:
        waiting = fill(rig, IDLE, pause=3600)
        rig.client().read(0, 100)
        rig.parked(1)
        rig.fetch(rig.take())
        assert waiting.is_alive()
        rig.store.stop()
        assert waiting.result() is None
