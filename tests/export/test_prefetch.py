"""Prefetching over a registry: in the order that is given, behind no read, and given up where it fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pyerofs.export.file import BlobFile
from pyerofs.export.prefetch import GAP, RUN_FIRST, together
from tests.support.blobs import Rig
from tests.support.fakeregistry import LIMIT, Behaviour, Exchange, FakeRegistry, honest, status
from tests.support.scene import until

SIZE = 9_000_001
MIB = 1 << 20


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


def here(blob: BlobFile, offset: int, length: int) -> None:
    until(lambda: blob._export.store.has(offset, length), "prefetched")


def held(release: threading.Event, reached: threading.Event) -> Behaviour:
    def behave(exchange: Exchange) -> None:
        reached.set()
        release.wait(LIMIT)
        first, end = exchange.range
        exchange.partial(exchange.blob[first:end])

    return behave


def test_ranges_come_before_anything_is_read(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        blob._export.prefetch([(5 * MIB, 3 * MIB), (0, 100)])
        here(blob, 5 * MIB, 3 * MIB)
        here(blob, 0, 100)
        first, last = min(rig.ranges[:2])  # of two streams, whichever the registry hears first
        assert first == 5 * MIB and last - first < RUN_FIRST  # what is wanted first does not wait for the rest
        assert sum(last - first + 1 for first, last in rig.ranges) == 3 * MIB + 4096
        before = len(rig.ranges)
        assert blob.pread(3 * MIB, 5 * MIB) == data[5 * MIB : 8 * MIB]
        assert len(rig.ranges) == before
        blob._export.prefetch([(6 * MIB, MIB)])  # costs nothing
        assert blob.pread(10, MIB) == data[MIB : MIB + 10]
        assert len(rig.ranges) == before + 1
    assert rig.log == []


def test_a_read_does_not_wait_for_what_is_prefetched(rig: Rig) -> None:
    """Of other bytes; one of the same waits for that request and makes none."""
    reference, data = rig.publish(SIZE)
    release, reached = threading.Event(), threading.Event()
    wait = held(release, reached)
    rig.fake.default = lambda exchange: (wait if exchange.range[0] < 4 * MIB else honest)(exchange)
    with rig.open(reference) as blob:
        blob._export.prefetch([(0, 4 * MIB)])
        assert reached.wait(LIMIT)
        assert blob.pread(100, 8 * MIB) == data[8 * MIB : 8 * MIB + 100]
        release.set()
        assert blob.pread(MIB, 0) == data[:MIB]
        here(blob, 0, 4 * MIB)
        assert sum(first < 4 * MIB for first, _ in rig.ranges) <= 3


def test_a_failure_ends_it_with_a_line(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        rig.fake.default = status(403)
        blob._export.prefetch([(0, 4 * MIB), (6 * MIB, MIB)])
        until(lambda: rig.log, "said")
        assert blob._export._prefetcher is not None
        prefetcher = blob._export._prefetcher
        until(lambda: not prefetcher.busy, "ended")
        rig.fake.default = honest
        assert blob.read() == data
    assert len(rig.log) == 1 and "prefetching has ended: " in rig.log[0]


def test_closing_does_not_wait_for_it(rig: Rig) -> None:
    reference, _ = rig.publish(SIZE)
    release, reached = threading.Event(), threading.Event()
    with rig.open(reference) as blob:
        rig.fake.default = held(release, reached)
        blob._export.prefetch([(0, SIZE)])
        assert reached.wait(LIMIT)
    release.set()
    assert rig.log == []


def test_ranges_beyond_the_end_are_cut(rig: Rig) -> None:
    reference, _ = rig.publish(SIZE)
    with rig.open(reference) as blob:
        blob._export.prefetch([(SIZE - 10, 1 << 40), (SIZE, 5), (1 << 50, 5)])
        here(blob, SIZE - 10, 10)
    assert rig.log == []


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], []),
        ([(0, 10)], [(0, 10)]),
        ([(0, 10), (5, 10)], [(0, 15)]),
        ([(GAP + 10, 10), (0, 10)], [(0, GAP + 20)]),
        ([(GAP + 11, 10), (0, 10)], [(GAP + 11, 10), (0, 10)]),
        ([(5 * MIB, 10), (0, 10), (5 * MIB - 20, 10)], [(5 * MIB - 20, 30), (0, 10)]),
        ([(9 * MIB, 10), (SIZE - 5, 10)], [(SIZE - 5, 5)]),
    ],
)
def test_what_lies_close_together_is_one(ranges: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    assert together(ranges, SIZE) == expected
