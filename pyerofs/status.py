"""What a mount is doing, as one dictionary: what its daemon answers to `stat`, and how that is shown to people.

Units are in the names, or it is a number of things. Nothing here waits for the registry: every lock that is taken is
one that nobody holds while he waits for anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .core import LATENCY_BOUNDS, PARKED_READS, READS, Latency
from .counters import percentile

if TYPE_CHECKING:
    from .export import Export
    from .record import Record

VERSION = 1
_SHARES = (("p50_seconds", 0.5), ("p90_seconds", 0.9), ("p99_seconds", 0.99))


def snapshot(export: Export, record: Record, started: float) -> dict[str, Any]:
    """What is known of a mount now; JSON-able. `started`: of the daemon, by time.monotonic(). Any thread. Raises
    MountFailure once the export is being closed."""
    with export.using():
        return _snapshot(export, record, started)


def _snapshot(export: Export, record: Record, started: float) -> dict[str, Any]:
    stats = export.store.stats()
    fetches = export.fetches.read()
    now = time.monotonic()
    failure = fetches.last_failure
    return {
        "version": VERSION,
        **identity(record),
        "uptime_seconds": now - started,
        "cache": {
            "directory": export.cache_path,
            "size_bytes": export.size,
            "present_bytes": stats.present,
            "present_percent": 100 * stats.present / export.size,
            "complete": stats.present == export.size,
            "verification": export.verification,
            "fill": export.fill,
            "healed_granules": stats.healed,
        },
        "reads": {
            "hits": stats.hits,
            "misses": stats.misses,
            "failed": stats.failed,
            "uncached": stats.uncached,
            "shared": stats.others,
            "served_bytes": stats.served,
            "waiting": stats.parked,
            "latency": _latency(export.store.latency(READS)),
            "waited_latency": _latency(export.store.latency(PARKED_READS)),
        },
        "fetches": {
            "requests": fetches.requests,
            "retries": fetches.retries,
            "failures": fetches.failures,
            "received_bytes": fetches.received,
            "in_flight": stats.flights,
            "latency": _latency(fetches.whole),
            "first_byte_latency": _latency(fetches.first_byte),
        },
        "last_error": failure and {"text": failure.text, "age_seconds": now - failure.when},
    }


def identity(record: Record) -> dict[str, Any]:
    """What a record tells, also when the daemon does not."""
    return {
        "id": record.id,
        "target": record.target,
        "source": record.source,
        "digest": record.digest,
        "layer": record.layer,
        "driver": record.driver,
        "device": record.device,
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
