"""Latencies of NBD reads: which are counted, in which bucket, and how long they were."""

from __future__ import annotations

import time
from errno import EINVAL
from itertools import pairwise

import pytest

from pyerofs.core import GRANULE, LATENCY_BOUNDS, PARKED_READS, READS, Latency
from tests.support import nbdclient as nbd
from tests.support.coreharness import KIB, MIB, Rig, Task, until

SIZE = 4 * MIB
SHORT = 0.03  # seconds: time that is meant to pass
SIZES = [1, 4 * KIB, 256 * KIB, MIB]  # the last two go by sendfile


def counted(rig: Rig, which: int, count: int) -> Latency:
    """Waits until so many are counted, which is after their replies have gone."""
    until(lambda: sum(rig.store.latency(which).buckets) >= count, f"{count} counted")
    latency = rig.store.latency(which)
    assert sum(latency.buckets) == count
    return latency


def in_its_bucket(latency: Latency) -> bool:
    """For a single duration: does the bucket that it was put into hold it?"""
    bucket = latency.buckets.index(1)
    return (LATENCY_BOUNDS[bucket - 1] if bucket else 0) <= latency.max < LATENCY_BOUNDS[bucket]


def test_a_bucket_is_an_eighth_of_its_time_at_the_most() -> None:
    assert LATENCY_BOUNDS[:9] == tuple(i / 1e6 for i in range(1, 10))
    for low, high in pairwise(LATENCY_BOUNDS[7:]):
        assert low < high <= low * 1.1251
    assert LATENCY_BOUNDS[-1] > 120


@pytest.mark.parametrize("length", SIZES)
def test_a_hit_is_counted_once(length: int) -> None:
    with Rig(SIZE, full=True) as rig:
        assert rig.store.latency(READS) == Latency((0,) * len(LATENCY_BOUNDS), 0, 0)
        rig.client().call(nbd.CMD_READ, 5, length)
        latency = counted(rig, READS, 1)
        assert in_its_bucket(latency)
        assert latency.sum == latency.max < nbd.TIMEOUT
        counted(rig, PARKED_READS, 0)


@pytest.mark.parametrize("full", [True, False])
def test_every_hit_of_many_at_once_is_counted(full: bool) -> None:
    with Rig(SIZE, full=full) as rig:
        rig.preset(0, 512)
        for client in (rig.client(), rig.client()):
            client.reads([(i * 7 * GRANULE, GRANULE if i % 5 else 300 * KIB) for i in range(60)] * 5)
            client.replies(300)
        latency = counted(rig, READS, 600)
        assert latency.max <= latency.sum <= 600 * latency.max
        counted(rig, PARKED_READS, 0)


@pytest.mark.parametrize("length", SIZES)
def test_a_read_that_waited_is_counted_with_its_wait(length: int) -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(0, length)
        rig.parked(1)
        time.sleep(SHORT)
        rig.source()
        client.reply()
        for which in (READS, PARKED_READS):
            latency = counted(rig, which, 1)
            assert SHORT <= latency.max == latency.sum
            assert in_its_bucket(latency)


def test_a_hit_that_overtakes_a_miss_has_its_own_time() -> None:
    with Rig(SIZE) as rig:
        rig.preset(100, 101)
        client = rig.client()
        client.reads([(0, 1), (100 * GRANULE, 1)])
        client.reply()
        counted(rig, READS, 1)
        counted(rig, PARKED_READS, 0)
        rig.source()
        client.reply()
        counted(rig, READS, 2)
        counted(rig, PARKED_READS, 1)


def test_a_read_whose_time_was_up_is_counted() -> None:
    with Rig(SIZE, timeout=SHORT) as rig:
        assert rig.client().call(nbd.CMD_READ, 0, 1).error
        assert counted(rig, PARKED_READS, 1).max >= SHORT


def test_what_is_no_read_is_not_counted() -> None:
    with Rig(SIZE, full=True) as rig:
        client = rig.client()
        for kind, offset, length in ((nbd.CMD_READ, SIZE, 1), (nbd.CMD_READ, 0, 0), (nbd.CMD_TRIM, 0, 10), (99, 0, 10)):
            assert client.call(kind, offset, length).error
        client.call(nbd.CMD_WRITE, 0, 5, payload=b"12345")
        client.call(nbd.CMD_READ, 0, 1)
        counted(rig, READS, 1)


def test_threads_that_wait_are_no_nbd_reads() -> None:
    with Rig(SIZE) as rig:
        rig.source()
        assert rig.store.wait(0, 1, nbd.TIMEOUT)
        counted(rig, READS, 0)


def test_reading_while_others_are_counted() -> None:
    with Rig(SIZE, full=True) as rig:
        client = rig.client()

        def call() -> None:
            for _ in range(300):
                client.call(nbd.CMD_READ, 0, 10)

        task = Task(call)
        seen = 0
        while task.is_alive():
            now = sum(rig.store.latency(READS).buckets)
            assert seen <= now <= 300
            seen = now
        task.result()
        counted(rig, READS, 300)


@pytest.mark.parametrize("which", [-1, 2])
def test_there_are_two(which: int) -> None:
    with Rig(SIZE) as rig:
        with pytest.raises(OSError) as caught:
            rig.store.latency(which)
        assert caught.value.errno == EINVAL
