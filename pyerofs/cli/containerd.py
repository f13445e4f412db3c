"""`pyerofs containerd`: containerd's snapshotter, and what containerd has to know of it."""

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
        "containerd",
        "serve containerd as a snapshotter that mounts images lazily",
        "  pyerofs containerd                         serve, at /run/pyerofs-containerd.sock\n"
        "  pyerofs containerd --print-config 1.7      what containerd's config.toml needs\n"
        "  pyerofs containerd check                   what is missing on this machine",
        _containerd,
    )
    p.add_argument("action", metavar="ACTION", nargs="?", choices=["serve", "check"], default="serve")
    p.add_argument("--root", metavar="DIR", help="where snapshots are kept (default: /var/lib/pyerofs/snapshotter)")
    p.add_argument("--address", metavar="SOCKET", help="where to serve (default: /run/pyerofs-containerd.sock)")
    p.add_argument(
        "--idle", metavar="SECONDS", type=_seconds, default=600.0,
        help="unmount images that no container has needed for so long (default: 600)",
    )  # fmt: skip
    p.add_argument(
        "--lazy", metavar="PREFIX", action="append", default=[],
        help="only images of these may be lazy: REGISTRY[/PATH]; may be given several times (default: all)",
    )  # fmt: skip
    p.add_argument("--print-config", metavar="VERSION", help="print containerd's configuration, and do nothing else")
    p.add_argument(
        "--containerd", metavar="SOCKET", default="/run/containerd/containerd.sock",
        help="of containerd, for check (default: %(default)s)",
    )  # fmt: skip


def _seconds(text: str) -> float:
    import argparse

    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return found


def _containerd(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..snapshotter.serve import ADDRESS, ROOT

    root, address = arguments.root or ROOT, arguments.address or ADDRESS
    if arguments.print_config is not None:
        from ..snapshotter.configuration import render

        write(render(arguments.print_config, root, address))
        return
    if arguments.action == "check":
        from ..snapshotter.check import check

        if not check(arguments.containerd, root, address, write):
            raise UsageError("containerd cannot use pyerofs yet: see the lines that begin with `missing`")
        return
    from ..snapshotter.serve import run
    from .notify import notify

    def ready(where: str) -> None:
        report(f"serving containerd at {where}")
        notify("READY=1")

    run(root, address, arguments.idle, arguments.options, arguments.lazy, report, ready, os.environ)
