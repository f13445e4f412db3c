"""Prefetching: ranges that reads are about to ask for come in order, and give way where reads want something else."""

from __future__ import annotations

from errno import EINVAL

import pytest

from pyerofs.core import DEMAND, GRANULE, Run
from tests.support.coreharness import KIB, MIB, Rig

SIZE = 8 * MIB + 77
PREFETCH = 4
SOON = 0.001  # seconds
STRAYS = 4


def prefetch(rig: Rig, offset: int, length: int, most: int = MIB, pause: float = SOON) -> Run:
    run = rig.task(rig.store.take_range, offset, length, most, pause).result()
    assert isinstance(run, Run)
    return run


def test_a_range_comes_in_order_and_no_further() -> None:
    with Rig(SIZE) as rig:
        first = prefetch(rig, MIB, 2 * MIB)
        assert (first.offset, first.length, first.kind) == (MIB, MIB, PREFETCH)
        second = prefetch(rig, MIB, 2 * MIB)
        assert (second.offset, second.length) == (2 * MIB, MIB)
        assert rig.store.take_range(MIB, 2 * MIB, MIB, SOON) is None  # all on its way
        rig.fetch(first)
        rig.fetch(second)
        assert rig.store.take_range(MIB, 2 * MIB, MIB, SOON) is None
        with pytest.raises(OSError) as e:
            rig.store.take_range(SIZE, 1, MIB, SOON)
        assert e.value.errno == EINVAL


def test_demand_is_taken_beside_what_is_prefetched() -> None:
    with Rig(SIZE) as rig:
        prefetch(rig, 0, 2 * MIB)
        rig.client().read(5 * MIB, 100)
        rig.parked(1)
        demand = rig.take()
        assert (demand.offset, demand.kind) == (5 * MIB, DEMAND)


def test_a_read_of_what_is_prefetched_waits_for_that_alone() -> None:
    with Rig(SIZE) as rig:
        run = prefetch(rig, 0, MIB)
        client = rig.client()
        client.read(300 * KIB, 100)
        rig.parked(1)
        taker = rig.task(rig.store.take)
        assert rig.land(run, 0, 512 * KIB)
        assert client.reply().data == rig.slice(300 * KIB, 100)
        assert rig.stats().runs == 1
        rig.store.stop()
        assert taker.result() is None


def test_what_is_prefetched_gives_way_to_reads_of_something_else() -> None:
    with Rig(SIZE) as rig:
        run = prefetch(rig, 0, 4 * MIB)
        client = rig.client()
        for number in range(STRAYS):
            assert rig.land(run, number * 64 * KIB, 64 * KIB)
            client.read(5 * MIB + number * 256 * KIB, 100)
            rig.parked(number + 1)
        assert not rig.land(run, STRAYS * 64 * KIB, 64 * KIB)
        rig.store.finish(run.id)
        held = rig.task(rig.store.take_range, 0, 4 * MIB, MIB, 3600)
        rig.fetch(rig.take())
        assert held.is_alive()
        rig.store.stop()
        assert held.result() is None


def test_what_gave_way_goes_on_after_a_pause() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        for number in range(STRAYS):
            client.read(5 * MIB + number * 256 * KIB, 100)
            rig.parked(number + 1)
        assert prefetch(rig, 0, MIB).offset == 0


def test_what_is_prefetched_goes_on_where_reads_wait_for_it() -> None:
    with Rig(SIZE) as rig:
        run = prefetch(rig, 0, MIB)
        client = rig.client()
        for number in range(1, 2 * STRAYS):
            client.read(5 * MIB if number % STRAYS else 900 * KIB, 100)
            rig.parked(number)
        assert rig.land(run, 0, 64 * KIB)


def test_a_trace_has_what_was_read_first_and_in_order() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, SIZE // GRANULE + 1)
        client = rig.client()
        for offset, length in ((MIB, 8192), (0, 512), (MIB + 8192, 100), (MIB, 64 * KIB), (SIZE - 77, 77)):
            client.read(offset, length)
            assert client.reply().data == rig.slice(offset, length)
        found = [number for touch in rig.store.trace() for number in range(touch.first, touch.first + touch.granules)]
        first, last = MIB // GRANULE, SIZE // GRANULE
        assert found == [first, first + 1, 0, first + 2, *range(first + 3, first + 16), last]
        times = [touch.ms for touch in rig.store.trace()]
        assert times == sorted(times)


def test_a_trace_has_reads_that_waited() -> None:
    with Rig(SIZE) as rig:
        rig.client().read(MIB, 100)
        rig.parked(1)
        assert [(touch.first, touch.granules) for touch in rig.store.trace()] == [(MIB // GRANULE, 1)]


def test_a_trace_s_memory_is_bounded() -> None:
    """What is read when it is full is not noted."""
    granules = 66_000
    with Rig(granules * GRANULE) as rig:
        rig.preset(0, granules)
        client = rig.client()
        for first in range(0, granules, 100):
            for number in range(first, first + 100, 2):
                client.read(number * GRANULE, 512)
            for _ in range(50):
                client.reply()
        assert len(rig.store.trace()) == 32_768
