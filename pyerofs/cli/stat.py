"""`pyerofs stat`: what one mount is doing."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING

from ..errors import MountError, UsageError

if TYPE_CHECKING:
    from .commands import Commands, Say


def register(commands: Commands) -> None:
    """Add the command."""
    p = commands.add(
        "stat",
        "show what a mount is doing: what is present, reads, fetches, latencies, the last error",
        "  pyerofs stat /mnt\n"
        "  pyerofs stat /mnt --watch                  again each second, with rates\n"
        "  pyerofs stat --json /dev/nbd0 | jq .reads.latency",
        stat,
        options=False,
    )
    p.add_argument("target", metavar="TARGET|DEVICE", nargs="?")
    p.add_argument("--json", action="store_true", help="as JSON; with --watch a line each time")
    p.add_argument(
        "--watch", nargs="?", const="1", metavar="SECONDS",
        help="repeat until interrupted; redraw on a terminal, else print a line each time (default: 1)",
    )  # fmt: skip


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 1e6:
        raise UsageError(f"--watch {text}: a number of seconds is needed")
    return seconds


def stat(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    """Print a mount's status.

    Raises MountError when the daemon does not answer, or the mount is dead, after what is known is written.
    """
    from ..mounting.reattach import find_record
    from ..mounting.stat import query, rates, render
    from .terminal import CLEAR

    if arguments.target is None and arguments.watch is not None:
        arguments.target, arguments.watch = arguments.watch, "1"  # `stat --watch /mnt`
    if arguments.target is None:
        raise UsageError("stat needs a TARGET (`pyerofs list` shows what is mounted)")
    seconds = _seconds(arguments.watch or "1")
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
        time.sleep(seconds)


def _json(value: object, indent: int | None = None) -> str:
    import json

    return json.dumps(value, indent=indent)
