"""Stores of several processes over the same files: what one has in flight no other asks for, and all get it.

Here they are stores in one process, each with an open file description of its own; test_sharing.py has processes.
"""

from __future__ import annotations

import os
from errno import EIO

import pytest

from pyerofs.core import GRANULE, Store
from tests.support import nbdclient as nbd
from tests.support.coreharness import MIB, WINDOW, Rig, bits_of, until

SIZE = 8 * MIB


def test_what_another_has_in_flight_is_waited_for() -> None:
    with Rig(SIZE) as rig:
        other = rig.open()
        clients = [rig.client(), rig.client(other)]
        clients[0].read(0, 3 * GRANULE)
        run = rig.take()
        clients[1].read(GRANULE, GRANULE)
        taking = rig.task(other.take)
        rig.parked(1, other)
        rig.land(run, 0, GRANULE)
        assert other.stats().parked == 1
        rig.land(run, GRANULE, GRANULE)
        assert clients[1].reply().data == rig.slice(GRANULE, GRANULE), "the run has not ended"
        rig.fetch_rest(run, 2 * GRANULE)
        assert clients[0].reply().data == rig.slice(0, 3 * GRANULE)
        assert (other.stats().runs, other.stats().others, other.stats().landed) == (0, 1, 0)
        other.stop()
        assert taking.result() is None


def test_a_waiting_thread_too() -> None:
    with Rig(SIZE) as rig:
        other = rig.open()
        rig.client().read(0, 1)
        run = rig.take()
        waiting = rig.task(other.wait, 5, 10, 20)
        rig.task(other.take)
        rig.parked(1, other)
        rig.fetch(run)
        assert waiting.result() is True
        assert other.stats().runs == 0


def test_a_run_ends_before_what_another_has_in_flight() -> None:
    with Rig(SIZE) as rig:
        other = rig.open()
        rig.client().read(10 * GRANULE, 1)
        theirs = rig.take()
        rig.client(other).read(0, 12 * GRANULE)
        mine = rig.take(other)
        assert (theirs.offset, mine.offset, mine.length) == (10 * GRANULE, 0, 10 * GRANULE)


def test_the_rest_of_a_read_that_another_has_in_part() -> None:
    with Rig(SIZE) as rig:
        other = rig.open()
        rig.client().read(0, 1)
        theirs = rig.take()
        client = rig.client(other)
        client.read(0, 2 * WINDOW)
        mine = rig.take(other)
        assert mine.offset == theirs.length == WINDOW
        rig.fetch(mine, other)
        rig.parked(1, other)
        rig.fetch(theirs)
        assert client.reply().data == rig.slice(0, 2 * WINDOW)


def test_three_claims_in_one_read() -> None:
    """Between and behind what others have, each gap is a run of its own."""
    with Rig(SIZE) as rig:
        other = rig.open()
        client = rig.client()
        client.reads([(MIB, 1), (2 * MIB, 1), (3 * MIB, 1)])
        theirs = [rig.take() for _ in range(3)]
        rig.client(other).read(MIB, 3 * MIB)
        mine = [rig.take(other) for _ in range(3)]
        assert [run.offset for run in theirs] == [MIB, 2 * MIB, 3 * MIB]
        assert [(run.offset, run.length) for run in mine] == [
            (MIB + WINDOW, MIB - WINDOW),
            (2 * MIB + WINDOW, MIB - WINDOW),
            (3 * MIB + WINDOW, MIB - WINDOW),
        ]


@pytest.mark.parametrize("landed", [0, 2 * GRANULE + 1])
@pytest.mark.parametrize("error", [0, EIO])
def test_what_another_gives_up_is_fetched_here(landed: int, error: int) -> None:
    """Its failure is its own: here it has not been tried yet."""
    with Rig(SIZE) as rig:
        other = rig.open()
        rig.client().read(0, 3 * GRANULE)
        run = rig.take()
        client = rig.client(other)
        client.read(0, 3 * GRANULE)
        taking = rig.task(other.take)
        rig.parked(1, other)
        rig.land(run, 0, landed)
        rig.store.finish(run.id, error)
        mine = taking.result()
        assert mine.offset == landed // GRANULE * GRANULE
        rig.fetch(mine, other)
        assert client.reply().data == rig.slice(0, 3 * GRANULE)


def test_the_claims_of_one_that_goes_away_go_with_it() -> None:
    """Nobody announces it, as nobody does for a process that is killed."""
    with Rig(SIZE) as rig:
        theirs = rig.reopen(rig.map_fd)
        dying = Store(rig.data_fd, SIZE, map_fd=theirs, sums_fd=rig.sums_fd, map_offset=4096)
        waiting = rig.task(dying.wait, 0, 1, 20)
        assert rig.take(dying).offset == 0
        client = rig.client()
        client.read(0, 1)
        taking = rig.task(rig.store.take)
        rig.parked(1)
        dying.stop()
        with pytest.raises(OSError):
            waiting.result()
        dying.close()
        # The descriptor is closed behind the harness's back; its number now names something harmless.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, theirs)
        os.close(null)
        run = taking.result()
        assert run.offset == 0
        rig.fetch(run)
        assert client.reply().data == rig.slice(0, 1)


def test_one_that_holds_a_claim_and_brings_nothing_is_not_waited_for_for_ever() -> None:
    """Stopped, or cut off: an eighth of the time that a read may wait is enough."""
    with Rig(SIZE) as rig:
        hurried = rig.open(timeout=8)
        rig.client().read(0, 3 * GRANULE)
        stuck = rig.take()
        client = rig.client(hurried)
        client.read(0, 3 * GRANULE)
        run = rig.take(hurried)
        assert run.offset == stuck.offset
        rig.fetch(run, hurried)
        assert client.reply().data == rig.slice(0, 3 * GRANULE)
        rig.fetch(stuck)
        assert rig.store.has(0, 3 * GRANULE)


def test_one_that_brings_nothing_is_waited_for_no_longer_than_a_read_may_wait_in_an_outage() -> None:
    """Else nothing would be tried any more, and so the outage never end."""
    with Rig(SIZE) as rig:
        rig.client().read(0, 1)
        rig.take()
        other = rig.open(timeout=9)  # whose eighth is more than the second of a read in an outage
        client = rig.client(other)
        client.read(MIB, 1)
        failing = rig.take(other)
        assert client.reply().error == nbd.EIO
        other.finish(failing.id, 0)
        client.read(0, 1)
        run = rig.take(other)
        assert run.offset == 0
        rig.fetch(run, other)
        assert client.reply().data == rig.slice(0, 1)


def test_a_read_that_waits_for_another_expires_in_its_own_time() -> None:
    with Rig(SIZE) as rig:
        other = rig.open(timeout=0.05)
        rig.client().read(0, 1)
        rig.take()
        taking = rig.task(other.take)  # it may come to a run of its own before the time is up
        assert rig.client(other).call(nbd.CMD_READ, 0, 1).error == nbd.EIO
        other.stop()
        taking.join(20)
        assert not taking.is_alive()


def test_read_ahead_goes_round_what_another_has() -> None:
    with Rig(SIZE) as rig:
        other = rig.open()
        client = rig.client()
        client.read(MIB, MIB)
        theirs = rig.take()
        reader = rig.client(other)
        for offset in range(0, MIB, 64 * 1024):
            cookie = reader.read(offset, 64 * 1024)
            while not other.has(offset, 64 * 1024):
                run = rig.take(other)
                assert run.offset + run.length <= MIB or run.offset >= theirs.offset + theirs.length
                rig.fetch(run, other)
            assert reader.reply().cookie == cookie


def test_stop_while_something_waits_for_another() -> None:
    with Rig(SIZE) as rig:
        other = rig.open()
        rig.client().read(0, 1)
        rig.take()
        client = rig.client(other)
        client.read(0, 1)
        taking = rig.task(other.take)
        rig.parked(1, other)
        other.stop()
        assert client.reply().error == nbd.ESHUTDOWN
        assert taking.result() is None


def test_all_of_a_blob_is_fetched_once_by_eight_stores() -> None:
    with Rig(SIZE + 77) as rig:
        stores = [rig.store, *(rig.open() for _ in range(7))]
        clients = [rig.client(store) for store in stores]
        for client in clients:
            client.reads((offset, min(MIB // 2, rig.size - offset)) for offset in range(0, rig.size, MIB // 2))
        for store in stores:
            rig.source(store)
            rig.source(store)
        for client in clients:
            replies = client.replies(17)
            assert b"".join(replies[cookie].data for cookie in sorted(replies)) == rig.data
        assert sum(store.stats().landed for store in stores) == rig.size
        assert bits_of(rig.store.copy_map()) == set(range(rig.granules))


def test_without_a_map_that_can_be_locked() -> None:
    """Two stores over one open file description see no claims of one another, and both are right all the same."""
    with Rig(SIZE) as rig:
        fd = rig.reopen(rig.map_fd)
        stores = [Store(rig.data_fd, SIZE, map_fd=fd, sums_fd=rig.sums_fd, map_offset=4096) for _ in range(2)]
        waiting = [rig.task(store.wait, 0, WINDOW, 20) for store in stores]
        runs = [rig.take(store) for store in stores]
        assert [run.offset for run in runs] == [0, 0]
        for store, run in zip(stores, runs, strict=True):
            rig.fetch(run, store)
        assert all(task.result() for task in waiting)
        for store in stores:
            buffer = bytearray(WINDOW)
            until(lambda store=store, buffer=buffer: store.read_into(buffer, 0) == WINDOW)  # type: ignore[misc]  # binds the loop's value
            assert buffer == rig.slice(0, WINDOW)
            store.stop()
            store.close()
