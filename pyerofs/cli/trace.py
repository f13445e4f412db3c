"""`pyerofs trace` and `prefetch`: what a start reads, and how it is fetched before."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ..errors import MountError, UnavailableError, UsageError
from ..quantity import show_bytes
from .terminal import show

if TYPE_CHECKING:
    import argparse

    from .commands import Commands, Say

_LOOK = 0.2  # seconds
_WIDTH = 30  # of the bar


def register(commands: Commands) -> None:
    """Add these commands."""
    p = commands.add(
        "trace",
        "write down, merge or show what was read first of an image",
        "  pyerofs trace /mnt -O app.trace            what was read of a mount so far\n"
        "  pyerofs trace show app.trace --plot app.svg\n"
        "  pyerofs trace merge a.trace b.trace -O both.trace\n"
        "  pyerofs convert --optimize app.trace quay.io/org/app:1 registry.example/app:1",
        _trace,
        options=False,
    )
    p.add_argument("what", metavar="TARGET|show|merge", help="a mount point or device, or what to do with files")
    p.add_argument("files", metavar="FILE", nargs="*", help="traces; several are merged")
    p.add_argument("-O", "--output", metavar="FILE", help="where the trace goes (default: standard output)")
    p.add_argument("--plot", metavar="FILE", help="with show: draw the image as SVG, by when it was read")
    p = commands.add(
        "prefetch",
        "have a mount fetch files, or all of the image, before they are read",
        "  pyerofs prefetch /mnt /usr/lib/python3 --wait\n  pyerofs prefetch /mnt",
        _prefetch,
        options=False,
    )
    p.add_argument("target", metavar="TARGET", help="the mount point or the device")
    p.add_argument("paths", metavar="PATH", nargs="*", help="in the image, from its root on (default: all of it)")
    p.add_argument("-w", "--wait", action="store_true", help="until all of it is there")


def _trace(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..erofs.trace import merge
    from ..mounting.observe import ask_trace, read_trace
    from ..mounting.reattach import find_record

    if arguments.what in ("show", "merge"):
        if not arguments.files:
            raise UsageError(f"trace {arguments.what} needs a FILE")
        trace = merge([read_trace(path) for path in arguments.files])
    elif arguments.files:
        raise UsageError("a trace is taken of one mount at a time")
    else:
        trace = ask_trace(find_record(arguments.what))
    if arguments.what == "show":
        from ..mounting.trace_view import plot, table

        if arguments.plot:
            _put(arguments.plot, plot(trace).encode())
        write(table(trace))
        return
    if arguments.plot:
        raise UsageError("--plot is for trace show")
    data = trace.to_bytes()
    if arguments.output:
        _put(arguments.output, data)
    else:
        write(data.decode().rstrip("\n"))


def _put(path: str, data: bytes) -> None:
    from ..files import atomic_write

    try:
        atomic_write(path, data, mode=0o644)
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}") from None


def _prefetch(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..daemon.control import ask
    from ..mounting.reattach import find_record

    bar = not arguments.quiet and sys.stderr.isatty()
    record = find_record(arguments.target)
    before, still = -1, 0
    while True:
        answer = ask(record.control, "prefetch", 60.0, paths=arguments.paths).values
        here, wanted = int(answer["present_bytes"]), int(answer["wanted_bytes"])
        if not arguments.wait or here >= wanted:
            break
        still = still + 1 if here == before else 0
        before = here
        if bar:
            done = _WIDTH * here // max(wanted, 1)
            show(f"{'#' * done}{'.' * (_WIDTH - done)}  {show_bytes(here)} of {show_bytes(wanted)}")
        if still * _LOOK > 120:
            raise MountError(f"{record.target}: nothing comes any more: see `pyerofs stat {record.target}`")
        time.sleep(_LOOK)
    if bar:
        show("")
    write(f"{show_bytes(here)} of {show_bytes(wanted)} here")
