"""Counters of fetching: durations and their percentiles, and what a source is asked for and answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.core import LATENCY_BOUNDS, Latency
from pyerofs.errors import NotFoundError, PyerofsError, RegistryError
from pyerofs.export.metrics import CountedSource, FetchCounters, Histogram, percentile
from pyerofs.source.blobs import NoConnections
from tests.support.blobs import Rig
from tests.support.fakeregistry import FakeRegistry, short, stall, status

if TYPE_CHECKING:
    from pyerofs.source.base import Source

quick = settings(deadline=None, derandomize=True, print_blob=True, max_examples=200)
durations = st.lists(st.floats(0, 130), min_size=1, max_size=50)


def latency(*seconds: float) -> Latency:
    histogram = Histogram()
    for each in seconds:
        histogram.add(each)
    return histogram.read()


@given(durations, st.floats(0.01, 1))
@quick
def test_a_percentile_is_an_eighth_too_long_at_the_most(seconds: list[float], share: float) -> None:
    found = percentile(latency(*seconds), share)
    true = sorted(seconds)[max(0, -int(-share * len(seconds) // 1) - 1)]
    assert true <= found <= max(true * 1.1251, true + 1.1e-6)


@given(durations)
@quick
def test_the_sum_the_largest_and_the_counts(seconds: list[float]) -> None:
    found = latency(*seconds)
    assert found.max == max(seconds) == percentile(found, 1)
    assert found.sum == pytest.approx(sum(seconds))
    for end, bound in enumerate(LATENCY_BOUNDS[:-1], 1):
        assert sum(found.buckets[:end]) == sum(each < bound for each in seconds)


def test_nothing_and_very_long() -> None:
    assert percentile(latency(), 0.5) == percentile(latency(), 1) == 0
    assert percentile(latency(500), 0.5) == LATENCY_BOUNDS[-1]
    assert latency(500).max == 500
    assert sum(latency(500).buckets) == 1


def test_many_threads_count() -> None:
    histogram, counters = Histogram(), FetchCounters()

    def count() -> None:
        for _ in range(1000):
            histogram.add(0.001)
            counters.requested()
            counters.received(3)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(histogram.read().buckets) == 4000
    assert counters.read()[:4] == (4000, 0, 0, 12000)


# A source


class Fixed:
    """What a counter asks of a source."""

    size, digest, name, layer = 10, "sha256:00", "app", 0
    connections = NoConnections()

    def __init__(self, error: PyerofsError | None = None):
        self.error = error

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Callable[[int, bytes], bool],
        *,
        whole: Callable[[], None],
        cancel: Callable[[], bool],
    ) -> None:
        whole()
        assert sink(0, b"abc")
        if self.error:
            raise self.error
        assert not sink(3, b"defg")

    def close(self) -> None:
        raise AssertionError("it is not the counter's to close")


def counted(counters: FetchCounters, error: PyerofsError | None = None) -> CountedSource:
    return CountedSource(cast("Source", Fixed(error)), counters)


def ask(source: CountedSource, cancelled: bool = False) -> list[object]:
    said: list[object] = []

    def sink(at: int, piece: bytes) -> bool:
        said.append((at, piece))
        return at == 0

    source.read_range(0, 10, sink, whole=lambda: said.append("whole"), cancel=lambda: cancelled)
    return said


def test_a_source_that_is_counted_is_the_same() -> None:
    counters = FetchCounters()
    source = counted(counters)
    assert (source.size, source.digest, source.name, source.layer) == (10, "sha256:00", "app", 0)
    assert ask(source) == ["whole", (0, b"abc"), (3, b"defg")]
    source.close()
    found = counters.read()
    assert found[:4] == (1, 0, 0, 7)
    assert sum(found.first_byte.buckets) == sum(found.whole.buckets) == 1
    assert found.last_failure is None


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_failure_is_counted_unless_it_is_our_own(cancelled: bool) -> None:
    counters = FetchCounters()
    with pytest.raises(RegistryError):
        ask(counted(counters, RegistryError("it broke off")), cancelled)
    found = counters.read()
    assert found[:4] == (1, 0, 0 if cancelled else 1, 3)
    assert (sum(found.first_byte.buckets), sum(found.whole.buckets)) == (1, 0)
    assert (found.last_failure is None) == cancelled
    if found.last_failure:
        assert found.last_failure.text == "it broke off"


# A real export


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


def test_what_an_export_fetches(rig: Rig) -> None:
    reference, data = rig.publish(300_000)
    rig.fake.script(status(503), short(10_000))
    with rig.open(reference) as blob:
        assert blob.pread(100_000, 0) == data[:100_000]
        found = blob._export.fetches.read()
        assert (found.requests, found.retries, found.failures) == (3, 2, 2)
        assert found.received >= 100_000
        assert found.last_failure is not None
        assert sum(found.first_byte.buckets) == 2


def test_a_final_failure_is_no_retry(rig: Rig) -> None:
    reference, _ = rig.publish(300_000)
    rig.fake.default = status(404)
    with rig.open(reference) as blob:
        with pytest.raises(NotFoundError):
            blob.pread(1, 0)
        assert blob._export.fetches.read()[:4] == (1, 0, 1, 0)


def test_a_registry_that_hangs_holds_up_no_figures(rig: Rig) -> None:
    reference, _ = rig.publish(300_000)
    release, reached = threading.Event(), threading.Event()
    rig.fake.default = stall(release, after=5000, reached=reached)
    with rig.open(reference) as blob:
        reader = threading.Thread(target=lambda: blob.pread(10_000, 0))
        reader.start()
        assert reached.wait(20)
        found = blob._export.fetches.read()
        assert (found.requests, found.failures, sum(found.whole.buckets)) == (1, 0, 0)
        assert blob._export.store.stats().parked == 1
        release.set()
        rig.fake.default = lambda exchange: exchange.partial()
        reader.join()
