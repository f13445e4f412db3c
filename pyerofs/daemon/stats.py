"""What a mount is doing, as one dictionary: what its daemon answers to `stat`, and how that is shown to people.

Units are in the names, or it is a number of things. Nothing here waits for the registry: every lock that is taken is
one that is never held while its holder waits.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..core import LATENCY_BOUNDS, PARKED_READS, READS, Latency, Stats
from ..export.metrics import combine, percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..export.base import Export
    from ..export.digest_check import State
    from .record import Record

VERSION = 1
_STATES: tuple[State, ...] = ("mismatch", "verifying", "unverified", "verified")  # the worst first
_SHARES = (("p50_seconds", 0.5), ("p90_seconds", 0.9), ("p99_seconds", 0.99))


def snapshot(exports: Sequence[Export], record: Record, started: float) -> dict[str, Any]:
    """Return what is known of a mount now; JSON-able.

    `started`: of the daemon, by time.monotonic(). Any thread. Raises MountError once an export is being closed.
    """
    with ExitStack() as stack:
        for export in exports:
            stack.enter_context(export.using())
        return _snapshot(exports, record, started)


def _snapshot(exports: Sequence[Export], record: Record, started: float) -> dict[str, Any]:
    """Of all of them together, and `parts`: of each."""
    every = [export.store.stats() for export in exports]
    stats = Stats(*map(sum, zip(*every, strict=True)))
    fetches = [export.fetches.read() for export in exports]
    now = time.monotonic()
    failures = [figures.last_failure for figures in fetches if figures.last_failure]
    failure = max(failures, key=lambda failure: failure.when, default=None)
    told = identity(record)
    caches = {export.source.layer: _cache([export], each) for export, each in zip(exports, every, strict=True)}
    return {
        "version": VERSION,
        **told,
        "parts": [{**part, "cache": caches.get(part["layer"])} for part in told["parts"]],
        "uptime_seconds": now - started,
        "cache": _cache(exports, stats),
        "reads": {
            "hits": stats.hits,
            "misses": stats.misses,
            "failed": stats.failed,
            "uncached": stats.uncached,
            "shared": stats.others,
            "served_bytes": stats.served,
            "waiting": stats.parked,
            "latency": _latency(combine([export.store.latency(READS) for export in exports])),
            "waited_latency": _latency(combine([export.store.latency(PARKED_READS) for export in exports])),
        },
        "fetches": {
            "requests": sum(figures.requests for figures in fetches),
            "retries": sum(figures.retries for figures in fetches),
            "failures": sum(figures.failures for figures in fetches),
            "received_bytes": sum(figures.received for figures in fetches),
            "wire_bytes": _over_the_network(exports),
            "in_flight": stats.flights,
            "latency": _latency(combine([figures.whole for figures in fetches])),
            "first_byte_latency": _latency(combine([figures.first_byte for figures in fetches])),
        },
        "last_error": failure and {"text": failure.text, "age_seconds": now - failure.when},
    }


def _over_the_network(exports: Sequence[Export]) -> int:
    """Bytes of all answers, with those for tokens, manifests and errors; layers of one image share connections."""
    from ..source.local import LocalSource  # here: who only looks at mounts needs nothing of it

    sources = [export.source for export in exports if not isinstance(export.source, LocalSource)]
    return sum({id(source.connections): source.connections.received.value for source in sources}.values())


def _cache(exports: Sequence[Export], stats: Stats) -> dict[str, Any]:
    """`directory`: of one blob, "" for several. `verification`: of several, the least that is true of all."""
    size = sum(export.size for export in exports)
    states = [export.verification for export in exports]
    return {
        "directory": exports[0].cache_path if len(exports) == 1 else "",
        "size_bytes": size,
        "present_bytes": stats.present,
        "present_percent": 100 * stats.present / size,
        "complete": stats.present == size,
        "verification": next(state for state in _STATES if state in states),
        "fill": exports[0].fill,
        "healed_granules": stats.healed,
    }


def identity(record: Record) -> dict[str, Any]:
    """Return what a record tells, also when the daemon does not."""
    return {
        "id": record.id,
        "target": record.target,
        "source": record.source,
        "digest": record.digest,
        "layer": record.layer,
        "driver": record.driver,
        "device": record.device,
        "parts": [asdict(part) for part in record.parts],
        "pid": record.pid,
        "supervisor_pid": record.supervisor or None,
        "restarts": record.restarts,
    }


def _latency(latency: Latency) -> dict[str, Any]:
    """`buckets`: [end of the bucket in seconds, how many], without the empty ones."""
    return {
        "count": sum(latency.buckets),
        "sum_seconds": latency.sum,
        **{name: percentile(latency, share) for name, share in _SHARES},
        "max_seconds": latency.max,
        "buckets": [[bound, count] for bound, count in zip(LATENCY_BOUNDS, latency.buckets, strict=True) if count],
    }
