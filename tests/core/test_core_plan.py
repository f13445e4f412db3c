"""How much is fetched at once: windows that grow with a reader who goes forward, read-ahead, room left for demand.

Windows up to 1 MiB (PLAN_WINDOW_FLOOR) do not depend on how fast the source is, so those are what is asserted.
"""

from __future__ import annotations

import random
import time
from itertools import pairwise

from pyerofs.core import DEMAND, GRANULE, Run
from tests.support import nbdclient as nbd
from tests.support.coreharness import KIB, MIB, WINDOW, Rig, pattern, until

AHEAD = 1
STEP = 64 * KIB
SIZE = 64 * MIB
DATA = pattern(MIB) * 64
FIRSTS = (WINDOW, 2 * WINDOW, 4 * WINDOW)  # what a single miss asks for, by what the source has shown of itself


def read_on(rig: Rig, client: nbd.Client, start: int, length: int, step: int = STEP) -> list[Run]:
    """Reads forward, fetching what is missed when it is missed; the runs that this took."""
    runs = []
    for offset in range(start, start + length, step):
        missed = not rig.store.has(offset, step)
        cookie = client.read(offset, step)
        while missed:
            runs.append(run := rig.take())
            rig.fetch(run, piece=MIB)
            missed = not rig.store.has(offset, step)
        assert client.reply() == (cookie, 0, rig.slice(offset, step))
    return runs


def test_sequential_reads_widen_the_window() -> None:
    with Rig(SIZE, data=DATA) as rig:
        runs = read_on(rig, rig.client(), 0, 12 * MIB)
        lengths = [run.length for run in runs if run.offset + run.length < 3 * MIB]
        assert lengths == sorted(lengths)
        assert lengths[0] == WINDOW
        assert any(run.length >= MIB for run in runs)
        assert max(run.length for run in runs) <= 16 * MIB
        assert len(runs) <= 10, "one run a window would have been 96"
        assert all(a.offset + a.length == b.offset for a, b in pairwise(runs))


def test_long_windows_have_to_be_earned() -> None:
    """Where the source would allow 16 MiB at once, since it is fast and answers late. A file's end is not announced:
    what is fetched beyond it is no more than a part of what was read of it."""
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        longest = 0
        for offset in range(0, SIZE, MIB):
            cookie = client.read(offset, MIB)
            while not rig.store.has(offset, MIB):
                run = rig.take()
                assert run.length <= max(8 * MIB, (offset + MIB) // 4)
                longest = max(longest, run.length)
                time.sleep(0.02)  # the source's latency, which is what allows long windows
                rig.fetch(run, piece=MIB)
            assert client.reply() == (cookie, 0, rig.slice(offset, MIB))
        assert longest > MIB


def test_random_reads_stay_small() -> None:
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        places = list(range(64))
        random.Random(1).shuffle(places)  # neighbours are far apart most of the time, and never within a window
        for place in places:
            offset = place * MIB + 300
            client.read(offset, 4 * KIB)
            run = rig.take()
            assert run.offset == place * MIB
            assert run.length in FIRSTS
            rig.fetch(run)
            assert client.reply().data == rig.slice(offset, 4 * KIB)
        assert rig.stats().runs == 64


def test_a_miss_asks_for_more_where_bytes_come_fast_after_a_long_wait() -> None:
    """And for less again where they do not. The clock decides: a slow machine takes more and longer rounds."""
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        places = iter(list(range(0, 63)) * 8)

        def missed(before: float, between: float) -> int:
            place = next(places)
            rig.store.forget_all()
            client.read(place * MIB, 4 * KIB)
            run = rig.take()
            time.sleep(before)
            rig.land(run, run.offset, GRANULE)
            time.sleep(between)
            rig.land(run, run.offset + GRANULE, run.length - GRANULE)
            rig.store.finish(run.id)
            client.reply()
            return run.length

        lengths: list[int] = []
        while (length := missed(0.02 * (1 + len(lengths) // 8), 0)) < FIRSTS[-1]:
            lengths.append(length)
        assert sorted(set(lengths)) == list(FIRSTS[:-1])
        assert lengths[:4] == [WINDOW] * 4
        while missed(0.002, 0.02) > WINDOW:
            pass


def test_backward_reads_stay_small() -> None:
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        for offset in range(4 * MIB, 0, -STEP):
            client.read(offset, 4 * KIB)
            run = rig.take()
            assert run.length <= max(FIRSTS)
            rig.fetch(run)
            client.reply()


def test_several_readers_each_have_their_window() -> None:
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        starts = [0, 16 * MIB, 32 * MIB, 48 * MIB]
        longest = dict.fromkeys(starts, 0)
        for step in range(0, 4 * MIB, STEP):
            for start in starts:
                for run in read_on(rig, client, start + step, STEP):  # which may take another reader's read-ahead
                    whose = run.offset // (16 * MIB) * 16 * MIB
                    longest[whose] = max(longest[whose], run.length)
        assert min(longest.values()) >= MIB


def test_a_reader_is_known_by_its_place_whatever_the_connection_and_the_order() -> None:
    with Rig(SIZE, data=DATA) as rig:
        clients = [rig.client() for _ in range(4)]
        longest = 0
        for start in range(0, 6 * MIB, 4 * STEP):
            offsets = [start + n * STEP for n in (1, 0, 3, 2)]
            for client, offset in zip(clients, offsets, strict=True):
                for run in read_on(rig, client, offset, STEP):
                    longest = max(longest, run.length)
        assert longest >= MIB


def test_read_ahead_goes_on_where_the_reader_will() -> None:
    with Rig(SIZE, data=DATA) as rig:
        read_on(rig, rig.client(), 0, 2 * STEP)
        ahead = rig.take()
        assert (ahead.kind, ahead.offset, ahead.length) == (AHEAD, 2 * STEP, 4 * WINDOW)
        late = rig.task(rig.store.take)
        assert rig.client().call(nbd.CMD_READ, 0, 1).error == 0
        rig.fetch(ahead)
        read_on(rig, rig.client(), 2 * STEP, STEP)  # a hit, which gives the taker more to do
        assert rig.stats().misses == 1
        until(lambda: rig.stats().flights == 1)
        run = late.result()
        assert (run.kind, run.offset) == (AHEAD, ahead.offset + ahead.length)


def test_no_read_ahead_for_a_single_read() -> None:
    """The taker goes to sleep; what it wakes up for is the next read."""
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        client.read(0, 4 * KIB)
        rig.fetch(rig.take())
        client.reply()
        taking = rig.task(rig.store.take)
        client.read(9 * MIB, 1)
        run = taking.result()
        assert (run.kind, run.offset) == (DEMAND, 9 * MIB)
        rig.fetch(run)


def test_read_ahead_ends_with_the_blob() -> None:
    size = 2 * STEP + GRANULE + 5
    with Rig(size) as rig:
        client = rig.client()
        client.read(0, STEP)
        rig.fetch(rig.take())
        client.reply()
        client.call(nbd.CMD_READ, STEP, STEP)
        run = rig.take()
        assert (run.kind, run.offset, run.length) == (AHEAD, 2 * STEP, GRANULE + 5)
        rig.fetch(run)
        assert rig.stats().present == size


def test_read_ahead_skips_what_is_present() -> None:
    with Rig(SIZE, data=DATA) as rig:
        rig.preset(2 * STEP // GRANULE, 2 * STEP // GRANULE + 40)
        read_on(rig, rig.client(), 0, 2 * STEP)
        run = rig.take()
        assert (run.kind, run.offset) == (AHEAD, 2 * STEP + 40 * GRANULE)


def test_demand_goes_before_read_ahead() -> None:
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        read_on(rig, client, 0, 2 * STEP)
        client.reads([(20 * MIB, 1), (30 * MIB, 1)])
        rig.parked(2)
        runs = [rig.take() for _ in range(3)]
        assert [(run.kind, run.offset) for run in runs] == [
            (DEMAND, 20 * MIB),
            (DEMAND, 30 * MIB),
            (AHEAD, 2 * STEP),
        ]


def test_a_read_waits_for_the_read_ahead_that_brings_its_bytes() -> None:
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        read_on(rig, client, 0, 2 * STEP)
        run = rig.take()
        client.read(run.offset + GRANULE, GRANULE)
        rig.parked(1)
        rig.land(run, run.offset, 2 * GRANULE)
        assert client.reply().data == rig.slice(run.offset + GRANULE, GRANULE)
        assert rig.stats().runs == 2


def test_half_of_the_takers_stay_free_for_demand() -> None:
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        for start in range(4):
            read_on(rig, client, start * 16 * MIB, 2 * STEP)
        before = rig.stats().runs
        takers = [rig.task(rig.store.take) for _ in range(4)]
        until(lambda: rig.stats().flights == 2)
        client.read(40 * MIB, 1)
        until(lambda: rig.stats().flights == 3)
        assert rig.stats().runs == before + 3
        rig.store.stop()
        runs = [run for taker in takers if (run := taker.result())]
        assert sorted(run.kind for run in runs) == [DEMAND, AHEAD, AHEAD]


def test_parked_reads_that_follow_one_another_become_one_run() -> None:
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        cookies = {client.read(offset, STEP): offset for offset in range(0, 2 * MIB, STEP)}
        rig.parked(len(cookies))
        run = rig.take()
        assert run.offset == 0
        assert run.length >= 2 * MIB
        rig.fetch(run)
        for _ in range(len(cookies)):
            reply = client.reply()
            assert reply.data == rig.slice(cookies.pop(reply.cookie), STEP)


def test_a_run_that_joins_reads_has_an_end() -> None:
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        for offset in range(0, 24 * MIB, MIB):
            client.read(offset, MIB)
        rig.parked(24)
        assert rig.take().length == 16 * MIB
        assert rig.take().offset == 16 * MIB


def test_two_long_flights_of_a_stream_are_enough() -> None:
    with Rig(SIZE, data=DATA) as rig:
        client = rig.client()
        for offset in range(0, 40 * MIB, MIB):
            client.read(offset, MIB)
        rig.parked(40)
        first, second = rig.take(), rig.take()
        third = rig.task(rig.store.take)
        assert client.read(63 * MIB, GRANULE)  # another place is another stream
        assert third.result().offset == 63 * MIB
        fourth = rig.task(rig.store.take)
        rig.fetch(first, piece=MIB)
        run = fourth.result()
        assert run.offset == second.offset + second.length
