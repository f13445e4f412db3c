"""What fetching has come to: counts, latencies, and the last thing that went wrong. Cheap enough to be always on."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from ..core import LATENCY_BOUNDS, Latency
from ..errors import PyerofsError
from ..source.base import SourceWrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..source.base import Source


class LastFailure(NamedTuple):
    """`when`: by time.monotonic()."""

    text: str
    when: float


class Histogram:
    """Durations in the C core's buckets. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets = [0] * len(LATENCY_BOUNDS)
        self._sum = self._max = 0.0

    def add(self, seconds: float) -> None:
        bucket = min(bisect_right(LATENCY_BOUNDS, seconds), len(LATENCY_BOUNDS) - 1)
        with self._lock:
            self._buckets[bucket] += 1
            self._sum += seconds
            self._max = max(self._max, seconds)

    def read(self) -> Latency:
        with self._lock:
            return Latency(tuple(self._buckets), self._sum, self._max)


def percentile(latency: Latency, share: float) -> float:
    """Return what `share` (0 to 1) of the durations did not exceed.

    In seconds, and up to 1/8 too long; 0 for no durations.
    """
    rank = share * sum(latency.buckets)
    so_far = 0
    for bound, count in zip(LATENCY_BOUNDS, latency.buckets, strict=True):
        so_far += count
        if count and so_far >= rank:
            return min(bound, latency.max)
    return latency.max  # also where the counts and the largest were read at different moments


class FetchFigures(NamedTuple):
    """Figures of what was fetched.

    `requests`: for ranges of the blob, of which `failures` failed; `retries`: how often one was followed by another.
    `received`: bytes of the image that have come, useful or not; where the layer is compressed, fewer came over the
    network, which Transport.received counts. `first_byte`: from the start of a request to its first byte; `whole`: to
    its end, for those that succeeded.
    """

    requests: int
    retries: int
    failures: int
    received: int
    first_byte: Latency
    whole: Latency
    last_failure: LastFailure | None


def combine(latencies: Sequence[Latency]) -> Latency:
    """As if all had been counted by one."""
    buckets = tuple(map(sum, zip(*(latency.buckets for latency in latencies), strict=True)))
    return Latency(buckets, sum(latency.sum for latency in latencies), max(latency.max for latency in latencies))


class FetchCounters:
    """Counts for any number of threads; read() waits for none of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = self._retries = self._failures = self._received = 0
        self._last: LastFailure | None = None
        self._first_byte = Histogram()
        self._whole = Histogram()

    def requested(self) -> None:
        with self._lock:
            self._requests += 1

    def retried(self) -> None:
        with self._lock:
            self._retries += 1

    def failed(self, text: str) -> None:
        with self._lock:
            self._failures += 1
            self._last = LastFailure(text, time.monotonic())

    def received(self, length: int) -> None:
        with self._lock:
            self._received += length

    def began(self, seconds: float) -> None:
        """Note that the first byte of an answer has come."""
        self._first_byte.add(seconds)

    def ended(self, seconds: float) -> None:
        """All of an answer has come."""
        self._whole.add(seconds)

    def read(self) -> FetchFigures:
        with self._lock:
            counts = (self._requests, self._retries, self._failures, self._received)
            last = self._last
        return FetchFigures(*counts, self._first_byte.read(), self._whole.read(), last)


class CountedSource(SourceWrapper):
    """A source whose requests are counted; the source itself stays the caller's. Any thread."""

    def __init__(self, source: Source, counters: FetchCounters):
        super().__init__(source)
        self._counters = counters

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Callable[[int, bytes], bool],
        *,
        whole: Callable[[], None],
        cancel: Callable[[], bool],
    ) -> None:
        counters = self._counters
        began = time.monotonic()
        silent = True

        def counting(at: int, piece: bytes) -> bool:
            nonlocal silent
            if silent:
                silent = False
                counters.began(time.monotonic() - began)
            counters.received(len(piece))
            return sink(at, piece)

        counters.requested()
        try:
            self._source.read_range(offset, length, counting, whole=whole, cancel=cancel)
        except PyerofsError as error:
            if not cancel():  # else we have ended it ourselves
                counters.failed(str(error))
            raise
        counters.ended(time.monotonic() - began)
