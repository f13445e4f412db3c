"""`pyerofs metrics`: all mounts for Prometheus."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    import argparse

    from .commands import Commands, Say


def register(commands: Commands) -> None:
    """Add the command."""
    p = commands.add(
        "metrics",
        "show all mounts' and the cache's counters and latencies, for Prometheus",
        "  pyerofs metrics --output /var/lib/prometheus/node-exporter/pyerofs.prom\n"
        "  pyerofs metrics --listen 127.0.0.1:9849    GET /metrics\n"
        "  pyerofs metrics --listen unix:/run/pyerofs-metrics.sock",
        metrics,
        options=False,
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "--output", metavar="FILE", help="replace a file instead, as for node_exporter's textfile collector"
    )
    where.add_argument(
        "--listen", metavar="unix:PATH|HOST:PORT", help="serve it over HTTP, on a Unix socket or a loopback address"
    )
    p.add_argument("--any-address", action="store_true", help="let --listen be an address that other machines reach")
    p.add_argument(
        "--format", choices=("openmetrics", "text"), metavar="FORMAT",
        help="openmetrics, or text, the classic format (default: text for --output)",
    )  # fmt: skip


def metrics(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..cache.paths import chosen_directory
    from ..config.file import oci_options
    from ..daemon.remains import standing
    from ..mounting.metrics import cache_figures, encode, render, serve, write_file
    from ..mounting.stat import query_all, strays

    options = oci_options(())
    directory = chosen_directory(options)

    def text(classic: bool) -> str:
        cache = cache_figures(directory, options.cache_max)
        return render([*query_all(standing()), *strays()], [cache] if cache else [], classic=classic)

    if arguments.output is not None:
        write_file(arguments.output, text(arguments.format != "openmetrics"))
    elif arguments.listen is not None:
        from ..export.serve import listen

        path = arguments.listen.removeprefix("unix:") if arguments.listen.startswith("unix:") else None
        if path is None and not arguments.any_address and not _is_loopback(arguments.listen):
            raise UsageError(
                f"--listen {arguments.listen}: other machines could read it there, which --any-address allows; else it "
                "must be unix:PATH, or HOST:PORT of a loopback address"
            )
        listener, _ = listen(path, arguments.listen, name="--listen")
        where = path or f"http://{arguments.listen.rpartition(':')[0]}:{listener.getsockname()[1]}/metrics"
        try:
            serve(listener, text, ready=lambda: write(f"ready: {where}"))
        finally:
            listener.close()
            if path:
                os.unlink(path)
    else:
        # The format has no escapes for what a terminal would obey: a sign that there is something must do.
        shown = encode(text(arguments.format == "text")).decode().rstrip("\n")
        write("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in shown))


def _is_loopback(address: str) -> bool:
    """Anyone who can connect can read it, so only this machine's users can unless that is asked for."""
    from ipaddress import ip_address

    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
