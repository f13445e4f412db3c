"""Mounts and the cache as text for Prometheus: for a collector that reads a file, or over HTTP.

OpenMetrics (github.com/prometheus/OpenMetrics), or the classic text format, version 0.0.4, which node_exporter's
collector of text files reads.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UnavailableError
from ..files import atomic_write

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from ..quantity import Limit

OPENMETRICS = "application/openmetrics-text"
CONTENT_TYPE = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
CLASSIC_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("target", "source", "digest", "device")
# Ends of buckets in seconds, each of them the end of one of the C core's: 16 us to 67 s, four times the one before.
_BOUNDS = tuple((1 << power) / 1e6 for power in range(4, 28, 2))


class _Family(NamedTuple):
    """`path`: where a snapshot has the value."""

    name: str
    kind: str
    text: str
    path: str

    @property
    def unit(self) -> str:
        """Which the name has to end with."""
        word = self.name.rpartition("_")[2]
        return word if word in ("seconds", "bytes") else ""


_FAMILIES = (
    _Family("pyerofs_uptime_seconds", "gauge", "How long the daemon has been running.", "uptime_seconds"),
    _Family("pyerofs_restarts", "counter", "Daemons that were replaced.", "restarts"),
    _Family("pyerofs_blob_size_bytes", "gauge", "Size of the layer.", "cache.size_bytes"),
    _Family("pyerofs_present_bytes", "gauge", "Bytes of the layer in the cache.", "cache.present_bytes"),
    _Family("pyerofs_healed_granules", "counter", "Granules found spoiled in the cache.", "cache.healed_granules"),
    _Family("pyerofs_read_hits", "counter", "Reads that found every byte present.", "reads.hits"),
    _Family("pyerofs_read_misses", "counter", "Reads that had to wait for bytes.", "reads.misses"),
    _Family("pyerofs_read_failures", "counter", "Reads that failed.", "reads.failed"),
    _Family("pyerofs_reads_uncached", "counter", "Reads whose bytes were not cached.", "reads.uncached"),
    _Family("pyerofs_reads_shared", "counter", "Reads that another process fetched for.", "reads.shared"),
    _Family("pyerofs_reads_waiting", "gauge", "Reads that wait for bytes now.", "reads.waiting"),
    _Family("pyerofs_served_bytes", "counter", "Bytes served to readers.", "reads.served_bytes"),
    _Family("pyerofs_fetch_requests", "counter", "Range requests.", "fetches.requests"),
    _Family("pyerofs_fetch_retries", "counter", "Range requests after one that failed.", "fetches.retries"),
    _Family("pyerofs_fetch_failures", "counter", "Range requests that failed.", "fetches.failures"),
    _Family(
        "pyerofs_fetch_failure_age_seconds", "gauge", "Time since a range request failed.", "last_error.age_seconds"
    ),
    _Family("pyerofs_fetches_in_flight", "gauge", "Ranges that are being fetched now.", "fetches.in_flight"),
    _Family("pyerofs_fetch_received_bytes", "counter", "Bytes of the image received.", "fetches.received_bytes"),
    _Family(
        "pyerofs_fetch_wire_bytes",
        "counter",
        "Bytes received from the network, headers included.",
        "fetches.wire_bytes",
    ),
    _Family("pyerofs_read_seconds", "histogram", "Durations of reads.", "reads.latency"),
    _Family("pyerofs_waited_read_seconds", "histogram", "Durations of reads that had to wait.", "reads.waited_latency"),
    _Family("pyerofs_fetch_seconds", "histogram", "Durations of range requests.", "fetches.latency"),
    _Family(
        "pyerofs_fetch_first_byte_seconds",
        "histogram",
        "Time to the first byte of an answer.",
        "fetches.first_byte_latency",
    ),
)


_CACHE_FAMILIES = (
    _Family("pyerofs_cache_size_bytes", "gauge", "Bytes that the cache occupies on its disk.", "size"),
    _Family("pyerofs_cache_entries", "gauge", "Blobs in the cache, complete or not.", "entries"),
    _Family("pyerofs_cache_limit_bytes", "gauge", "What cache.max allows.", "limit"),
    _Family("pyerofs_cache_evictions", "counter", "Blobs that left the cache to make room.", "evictions"),
    _Family("pyerofs_cache_evicted_bytes", "counter", "Bytes of those.", "evicted_bytes"),
    _Family("pyerofs_conversions", "counter", "Ordinary images that were made native in the cache.", "conversions"),
)


def cache_figures(directory: str, limit: Limit | None) -> dict[str, Any]:
    """Return what is told of a cache directory; nothing where there is none. Raises UsageError, UnavailableError."""
    from ..cache import counters
    from ..cache.directory import limit_in, scan

    if not os.path.isdir(directory):
        return {}
    entries = scan(directory)
    found = {"directory": directory, "size": sum(entry.disk for entry in entries), "entries": len(entries)}
    allowed = {"limit": limit_in(directory, limit)} if limit is not None else {}
    return {**found, **allowed, **counters.read(directory)._asdict()}


def render(statuses: Sequence[dict[str, Any]], caches: Sequence[dict[str, Any]] = (), *, classic: bool = False) -> str:
    """Render what stat.query_all() and stat.strays() have found, and cache_figures().

    A daemon that does not answer has `pyerofs_up` 0 and nothing else; so has a dead mount. `classic`: in the older
    text format.
    """
    statuses = list({_labels(status): status for status in reversed(statuses)}.values())[::-1]  # the uppermost of each
    lines = _head(_Family("pyerofs_up", "gauge", "Whether the mount can be read.", ""), classic)
    lines += [f"pyerofs_up{_labels(status)} {int(_is_up(status))}" for status in statuses]
    answered = [status for status in statuses if _is_up(status)]
    for family in _CACHE_FAMILIES:
        told = [cache for cache in caches if family.path in cache]
        suffix = "_total" if family.kind == "counter" else ""
        lines += _head(family, classic)
        lines += [
            f'{family.name}{suffix}{{directory="{_escaped(cache["directory"])}"}} {cache[family.path]}'
            for cache in told
        ]
    for family in _FAMILIES:
        lines += _head(family, classic)
        for status in answered:
            value: Any = status
            for key in family.path.split("."):
                value = value and value.get(key)  # a daemon of another version may have less to say
            if value is not None:
                lines += _samples(family, status, value)
    return "\n".join([*lines, *(() if classic else ("# EOF",)), ""])


def _is_up(status: dict[str, Any]) -> bool:
    return "error" not in status and not status.get("dead")


def _head(family: _Family, classic: bool) -> list[str]:
    if classic:
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        return [f"# HELP {name} {family.text}", f"# TYPE {name} {family.kind}"]
    unit = [f"# UNIT {family.name} {family.unit}"] if family.unit else []
    return [f"# TYPE {family.name} {family.kind}", *unit, f"# HELP {family.name} {family.text}"]


def _samples(family: _Family, status: dict[str, Any], value: Any) -> Iterator[str]:
    if family.kind != "histogram":
        suffix = "_total" if family.kind == "counter" else ""
        yield f"{family.name}{suffix}{_labels(status)} {value}"
        return
    for bound in _BOUNDS:
        count = sum(count for end, count in value["buckets"] if end <= bound)
        yield f"{family.name}_bucket{_labels(status, le=repr(bound))} {count}"
    yield f"{family.name}_bucket{_labels(status, le='+Inf')} {value['count']}"
    yield f"{family.name}_count{_labels(status)} {value['count']}"
    yield f"{family.name}_sum{_labels(status)} {value['sum_seconds']}"


def _labels(status: dict[str, Any], **more: str) -> str:
    pairs = {**{name: str(status[name]) for name in _LABELS}, **more}
    if not pairs["device"].startswith("/dev/nbd"):
        pairs["device"] = ""  # a name of ours for a mount has a process's number in it, and would be new each time
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def encode(text: str) -> bytes:
    """Encode the text: a path need not be UTF-8, the text must."""
    return text.encode(errors="replace")


def write_file(path: str, text: str) -> None:
    """Replace the file, which all users may read, as a whole. Raises UnavailableError."""
    try:
        atomic_write(path, encode(text), mode=0o644)
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}") from None


def serve(listener: socket.socket, text: Callable[[bool], str], ready: Callable[[], None]) -> None:
    """Answer GET /metrics on a listening socket, which stays the caller's, until a signal ends it.

    Each client has a thread, and gets OpenMetrics if it asks for that; `text` is told whether it is to be the classic
    format. For the main thread.
    """
    from ..webserver import WebHandler, serve_http

    class MetricsHandler(WebHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, explain="there is /metrics")
                return
            classic = OPENMETRICS not in self.headers.get("Accept", "")
            self.send_body(200, CLASSIC_TYPE if classic else CONTENT_TYPE, encode(text(classic)))

    serve_http(listener, MetricsHandler, ready)
