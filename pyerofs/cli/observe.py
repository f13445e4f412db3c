"""`pyerofs stat`, `metrics` and `config`: their parsers, and what they do.

Nothing is printed here: what is found goes, text by text, to a writer.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

from ..errors import MountError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[[str], None]
    # Adds one command to a parser's commands, as all commands look: (commands, name, text, examples).
    Command = Callable[[Any, str, str, str], argparse.ArgumentParser]


def add_parsers(commands: Any, command: Command) -> None:
    """Add the commands of this module to the command line's."""
    p = command(
        commands,
        "stat",
        "show what a mount is doing: what is present, reads, fetches, latencies, the last error",
        "  pyerofs stat /mnt\n"
        "  pyerofs stat /mnt --watch                  again each second, with rates\n"
        "  pyerofs stat --json /dev/nbd0 | jq .reads.latency",
    )
    p.add_argument("target", metavar="TARGET|DEVICE")
    p.add_argument("--json", action="store_true", help="as JSON; with --watch a line each time")
    p.add_argument(
        "--watch", nargs="?", type=_seconds, const=1.0, metavar="SECONDS",
        help="repeat until interrupted; redraw on a terminal, else print a line each time (default: 1)",
    )  # fmt: skip

    p = command(
        commands,
        "metrics",
        "show all mounts' counters and latencies as OpenMetrics text, for Prometheus",
        "  pyerofs metrics --output /var/lib/prometheus/node-exporter/pyerofs.prom\n"
        "  pyerofs metrics --listen 127.0.0.1:9849    GET /metrics\n"
        "  pyerofs metrics --listen unix:/run/pyerofs-metrics.sock",
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "--output", metavar="FILE", help="replace a file instead, as for node_exporter's textfile collector"
    )
    where.add_argument(
        "--listen", metavar="unix:PATH|HOST:PORT", help="serve it over HTTP, on a Unix socket or a loopback address"
    )

    p = command(
        commands,
        "config",
        "show each option's effective default, and which file sets it",
        "  pyerofs config\n"
        "  pyerofs config quay.io/org/app:1.0         as for this image\n"
        "  pyerofs config --example > /etc/pyerofs/config.toml",
    )
    p.add_argument(
        "--example", action="store_true", help="print a file with every option, commented out, to start from"
    )
    p.add_argument("image", metavar="IMAGE", nargs="?", default="", help="also apply the section of its registry")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def stat(arguments: argparse.Namespace, write: Write) -> None:
    """Print a mount's status.

    Raises MountError when the daemon does not answer, or the mount is dead, after what is known is written.
    """
    from ..mounting.reattach import find_record
    from ..mounting.stat import query, rates, render
    from .terminal import CLEAR

    record = find_record(arguments.target)
    status = query(record)
    if arguments.watch is None:
        write(_json(status, indent=2) if arguments.json else render(status))
        if "error" in status:
            raise MountError(f"{record.target}: {status['error']}")
        if status.get("dead"):
            raise MountError(f"{record.target}: {status['dead']}")
        return
    redraw = os.isatty(1) and not arguments.json
    while True:
        before, status = status, query(record)
        if "error" in status:
            record = find_record(arguments.target)  # another daemon has taken over, or it is unmounted, which ends this
        if arguments.json:
            write(_json(status))
        elif redraw:
            write(f"{CLEAR}{render(status)}\n\n{rates(before, status)}")
        else:
            write(rates(before, status))
        time.sleep(arguments.watch)


def _json(value: object, indent: int | None = None) -> str:
    import json

    return json.dumps(value, indent=indent)


def metrics(arguments: argparse.Namespace, write: Write) -> None:
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


def config(arguments: argparse.Namespace, write: Write) -> None:
    from ..config.file import load
    from ..config.render import example, render
    from ..oci.location import Location

    if arguments.example:
        write(example())
        return
    location = Location.parse(arguments.image, image=False) if arguments.image else None
    write(render(load(), location))


COMMANDS: dict[str, Callable[[argparse.Namespace, Write], None]] = {"stat": stat, "metrics": metrics, "config": config}
