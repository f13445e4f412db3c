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
        "show all mounts' counters and latencies as OpenMetrics text, for Prometheus",
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


def metrics(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..daemon.remains import standing
    from ..mounting.metrics import encode, render, serve, write_file
    from ..mounting.stat import query_all, strays

    def text() -> str:
        return render([*query_all(standing()), *strays()])

    if arguments.output is not None:
        write_file(arguments.output, text())
    elif arguments.listen is not None:
        from ..export.serve import listen

        path = arguments.listen.removeprefix("unix:") if arguments.listen.startswith("unix:") else None
        if path is None and not _is_loopback(arguments.listen):
            raise UsageError(f"--listen {arguments.listen}: it must be unix:PATH, or HOST:PORT of a loopback address")
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
        shown = encode(text()).decode().rstrip("\n")
        write("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in shown))


def _is_loopback(address: str) -> bool:
    """Anyone who can connect can read it, so only this machine's users can; a proxy can serve it to others."""
    from ipaddress import ip_address

    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
