"""Any interleaving of reads, takes, landings, ends and hang-ups against a model of the store in Python.

Guarantees that are checked at every step: the right bytes, one reply per request, none before its bytes are in, never
two flights over one granule, the oldest unclaimed read first, and a map that tells exactly what was landed.
"""

from __future__ import annotations

import os
import random
from errno import EIO

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyerofs.core import DEMAND, GRANULE, Run, Store
from tests.support import nbdclient as nbd
from tests.support.coreharness import KIB, Rig, Served, Task, bits_of, until

CLIENTS = 3


class Flight:
    """A run and how far its taker is."""

    def __init__(self, run: Run):
        self.run = run
        self.pos = run.offset
        self.end = run.offset + run.length

    def granules(self) -> set[int]:
        """What it will still bring."""
        return span(self.pos, self.end)


class Parked:
    def __init__(self, client: int, cookie: int, offset: int, length: int):
        self.client = client
        self.cookie = cookie
        self.place = (offset, length)
        self.granules = span(offset, offset + length)


def span(start: int, end: int) -> set[int]:
    return set(range(start // GRANULE, -(-end // GRANULE))) if start < end else set()


class Model(RuleBasedStateMachine):
    @initialize(size=st.integers(1, 400 * KIB), present=st.sets(st.integers(0, 99), max_size=30))
    def begin(self, size: int, present: set[int]) -> None:
        self.rig = Rig(size)
        self.served: list[Served] = [self.rig.connect() for _ in range(CLIENTS)]
        self.present = {granule for granule in present if granule < self.rig.granules}
        for granule in self.present:
            self.rig.preset(granule, granule + 1)
        self.flights: list[Flight] = []
        self.parked: list[Parked] = []
        self.reads = 0
        self.failed = 0
        self.runs = 0

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        for served in self.served:
            served.client.barrier()
        for granule in self.present:
            start = granule * GRANULE
            assert os.pread(self.rig.data_fd, GRANULE, start) == self.rig.slice(start, GRANULE)
        stats = self.rig.stats()
        assert (stats.failed, stats.runs, stats.flights) == (self.failed, self.runs, len(self.flights))
        self.rig.__exit__(None, None, None)

    def unclaimed(self) -> list[int]:
        """Of the oldest read that has any: the granules that are neither present nor in flight."""
        in_flight = set().union(*(flight.granules() for flight in self.flights))
        for parked in self.parked:
            if missing := parked.granules - self.present - in_flight:
                return sorted(missing)
        return []

    def expect(self, done: list[Parked], error: int) -> None:
        """Those parked reads, and no others, are answered now."""
        self.parked = [parked for parked in self.parked if parked not in done]
        for number, served in enumerate(self.served):
            mine = {parked.cookie: parked for parked in done if parked.client == number}
            for cookie, reply in served.client.replies(len(mine)).items():
                data = b"" if error else self.rig.slice(*mine[cookie].place)
                assert (reply.error, reply.data) == (error, data)

    @rule(number=st.integers(0, CLIENTS - 1), where=st.integers(0, 2**30), length=st.integers(1, 60 * KIB))
    def read(self, number: int, where: int, length: int) -> None:
        offset = where % self.rig.size
        length = min(length, self.rig.size - offset)
        client = self.served[number].client
        cookie = client.read(offset, length)
        self.reads += 1
        until(lambda: self.rig.stats().hits + self.rig.stats().misses == self.reads)
        if span(offset, offset + length) <= self.present:
            assert client.reply() == (cookie, 0, self.rig.slice(offset, length))
        else:
            self.parked.append(Parked(number, cookie, offset, length))

    @precondition(lambda self: self.unclaimed())
    @rule()
    def take(self) -> None:
        first = self.unclaimed()[0]
        run = self.rig.take()
        self.runs += 1
        flight = Flight(run)
        assert (run.kind, run.offset) == (DEMAND, first * GRANULE)
        assert run.length > 0
        assert flight.end == self.rig.size or (flight.end % GRANULE == 0 and flight.end < self.rig.size)
        assert not any(flight.granules() & other.granules() for other in self.flights)
        self.flights.append(flight)

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 99), length=st.one_of(st.integers(0, 3 * GRANULE), st.integers(0, 200 * KIB)))
    def land(self, which: int, length: int) -> None:
        flight = self.flights[which % len(self.flights)]
        start, flight.pos = flight.pos, min(flight.pos + length, flight.end)
        more = self.rig.land(flight.run, start, flight.pos - start)
        full = self.rig.granules if flight.pos == self.rig.size else flight.pos // GRANULE
        self.present |= set(range(start // GRANULE, full))
        assert more == (flight.pos == flight.end or bool(flight.granules() - self.present))
        self.expect([parked for parked in self.parked if parked.granules <= self.present], 0)

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 99), whole=st.sampled_from([False, False, False, True]))
    def resume(self, which: int, whole: bool) -> None:
        flight = self.flights[which % len(self.flights)]
        flight.pos = 0 if whole else flight.pos // GRANULE * GRANULE
        flight.end = self.rig.size if whole else flight.end
        assert self.rig.store.resume(flight.run.id, whole=whole) == (flight.pos, flight.end - flight.pos)

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 99), error=st.sampled_from([0, 0, EIO]))
    def finish(self, which: int, error: int) -> None:
        flight = self.flights[which % len(self.flights)]
        waiting = [parked for parked in self.parked if parked.granules & flight.granules() - self.present]
        assert self.rig.store.waiters(flight.run.id) == len(waiting)
        self.rig.store.finish(flight.run.id, error)
        self.flights.remove(flight)
        if error:
            self.failed += len(waiting)
            self.expect(waiting, nbd.EIO)

    @rule(number=st.integers(0, CLIENTS - 1))
    def hang_up(self, number: int) -> None:
        served = self.served[number]
        served.client.close()
        served.end()
        self.parked = [parked for parked in self.parked if parked.client != number]
        self.served[number] = self.rig.connect()

    @invariant()
    def nothing_else_has_changed(self) -> None:
        if hasattr(self, "rig"):
            assert self.rig.stats().parked == len(self.parked)
            assert bits_of(self.rig.store.copy_map()) == self.present


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=80, stateful_step_count=40, deadline=None, print_blob=True)


# The same with all threads at once: what they see of each other is not known, but every reply is, in the end.


def misbehave(rig: Rig, store: Store, chance: random.Random) -> None:
    """A fetch thread with pieces of any length, answers that break off, failures and whole blobs."""
    while (run := store.take()) is not None:
        pos, end = run.offset, run.offset + run.length
        error = 0
        try:
            while pos < end:
                turn = chance.random()
                if turn < 0.02:
                    error = EIO
                    break
                if turn < 0.04:
                    break
                if turn < 0.08:
                    pos, length = store.resume(run.id, whole=turn < 0.045)
                    end = pos + length
                length = min(chance.choice([1, 999, GRANULE, 5 * GRANULE + 1, 64 * KIB]), end - pos)
                if not rig.land(run, pos, length, store):
                    break
                pos += length
            store.finish(run.id, error)
        except BrokenPipeError:
            return  # stopped


def read_much(rig: Rig, client: nbd.Client, chance: random.Random) -> int:
    """150 reads, up to 16 at once; how many have failed."""
    places: dict[int, tuple[int, int]] = {}
    failed = sent = 0
    while sent < 150 or places:
        while sent < 150 and len(places) < 16:
            offset = chance.randrange(rig.size)
            length = min(chance.choice([1, 512, GRANULE, 30_000, 300_000]), rig.size - offset)
            places[client.read(offset, length)] = (offset, length)
            sent += 1
        reply = client.reply()
        place = places.pop(reply.cookie)
        assert reply.error in (0, nbd.EIO)
        assert reply.error or reply.data == rig.slice(*place)
        failed += reply.error != 0
    client.barrier()
    return failed


@pytest.mark.parametrize("seed", range(6))
def test_all_at_once(seed: int) -> None:
    """Two stores over the same files, each with three clients and three fetch threads; one client dies on the way."""
    with Rig(1500 * KIB + 77) as rig:
        other = rig.open()
        stores = [rig.store, other] * 3
        for n, store in enumerate(stores):
            rig.task(misbehave, rig, store, random.Random(seed * 100 + n))
        readers = [
            Task(read_much, rig, rig.client(store), random.Random(seed * 100 + 50 + n))
            for n, store in enumerate(stores)
        ]
        dying = rig.connect()
        dying.client.reads((n * 10_000, 70_000) for n in range(100))
        dying.client.close()
        dying.serving.join(nbd.TIMEOUT)
        failed = sum(reader.result() for reader in readers)
        assert failed <= rig.stats().failed + other.stats().failed
        for granule in bits_of(rig.store.copy_map()):
            assert os.pread(rig.data_fd, GRANULE, granule * GRANULE) == rig.slice(granule * GRANULE, GRANULE)
