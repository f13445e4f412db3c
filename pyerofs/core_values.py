"""What the C core tells: pure values, named by core.py for all others."""

from __future__ import annotations

from typing import NamedTuple


class Run(NamedTuple):
    """A range to fetch with one request. `idle`: how many fetch threads are still without work."""

    id: int
    offset: int
    length: int
    kind: int
    idle: int


class Touch(NamedTuple):
    """`granules` from number `first` on that were read for the first time, `ms` after the store was opened."""

    first: int
    granules: int
    ms: int


class Latency(NamedTuple):
    """How many took how long: `buckets` by LATENCY_BOUNDS; `sum` and `max` in seconds."""

    buckets: tuple[int, ...]
    sum: float
    max: float


class Stats(NamedTuple):
    """Counters since the store was opened (csrc/pyerofs.h); `present`, `parked` and `flights` are as of now."""

    present: int
    hits: int
    misses: int
    served: int
    failed: int
    runs: int
    landed: int
    parked: int
    flights: int
    uncached: int
    healed: int
    others: int
