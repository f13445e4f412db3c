"""`pyerofs serve`, `inspect`, `list` and `read`: what images hold, and what of them is mounted."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..printable import every_text

if TYPE_CHECKING:
    from ..context import Context
    from .commands import Commands, Say


def register(commands: Commands) -> None:
    """Add these commands."""
    p = commands.add(
        "serve",
        "serve a layer as an NBD export, in the foreground",
        "  pyerofs serve --unix /run/app.sock -o oci=0 quay.io/org/app:1.0\n"
        "  nbdcopy nbd+unix:///?socket=/run/app.sock app.erofs\n"
        "  pyerofs serve --tcp 127.0.0.1:10809 app.erofs\n"
        "  pyerofs serve --registry 10.0.0.7:5009     this cache, as a mirror for other machines",
        _serve,
    )
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--unix", metavar="PATH", help="listen on a Unix socket (mode 0600)")
    where.add_argument("--tcp", metavar="HOST:PORT", help="listen on a TCP port (no encryption, no authentication)")
    where.add_argument(
        "--registry", metavar="[HOST:]PORT",
        help="serve what is in the cache and verified to other pyerofs, by HTTP (no encryption, no authentication)",
    )  # fmt: skip
    p.add_argument("source", metavar="SOURCE", nargs="?", help="none with --registry")

    p = commands.add(
        "inspect",
        "show an image's platforms and layers, and which of them are EROFS",
        "  pyerofs inspect quay.io/org/app:1.0\n  pyerofs inspect --json localhost:5000/app | jq .layers",
        _inspect,
    )
    p.add_argument("--json", action="store_true", help="as JSON")
    p.add_argument("image", metavar="IMAGE")

    p = commands.add(
        "list",
        "list mounts, with device, daemon, state, and how much of each is cached",
        "  pyerofs list --json",
        _list,
        options=False,
    )
    p.add_argument("--json", action="store_true", help="as JSON")
    p.add_argument("--no-trunc", action="store_true", help="all devices, and nothing cut to the terminal's width")

    p = commands.add(
        "read",
        "write a range of a layer to standard output",
        "  pyerofs read -o oci=0 quay.io/org/app:1.0 > app.erofs\n"
        "  pyerofs read --offset 1024 --length 128 app.erofs | xxd",
        _read,
    )
    p.add_argument("--offset", type=_number, default=0, metavar="N", help="bytes from the start (default: 0)")
    p.add_argument("--length", type=_number, metavar="N", help="bytes (default: up to the end)")
    p.add_argument("source", metavar="SOURCE")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)


def _context(arguments: argparse.Namespace, report: Say) -> Context:
    from ..context import Context

    return Context(report, report if arguments.verbose > 1 else None)


def _serve(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..export.file import open_export
    from ..export.serve import listen, serve
    from .notify import notify

    if (arguments.registry is None) == (arguments.source is None):
        raise UsageError("serve needs a SOURCE, or --registry (see `pyerofs serve --help`)")
    if arguments.registry is not None:
        _serve_cache(arguments, write, report)
        return
    listener, url = listen(arguments.unix, arguments.tcp)
    try:
        export = open_export(arguments.source, arguments.options, _context(arguments, report))

        def ready() -> None:
            write(f"ready: {url}")
            notify("READY=1")

        serve(export, listener, report, ready=ready)
    finally:
        listener.close()
        if arguments.unix:
            os.unlink(arguments.unix)


def _serve_cache(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..cache.paths import chosen_directory
    from ..config.file import oci_options
    from ..export.serve import listen
    from ..fleet.mirror_server import serve_mirror
    from ..fleet.neighbours import CachedBlobs
    from .notify import notify

    blobs = CachedBlobs(chosen_directory(oci_options(arguments.options)))
    where = arguments.registry if ":" in arguments.registry else f"127.0.0.1:{arguments.registry}"
    listener, url = listen(None, where, name="--registry")

    def ready() -> None:
        write(f"ready: {url.replace('nbd:', 'http:', 1)}")
        notify("READY=1")

    try:
        serve_mirror(listener, blobs, report, ready)
    finally:
        listener.close()


def _inspect(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..images.inspect import inspect, render

    found = inspect(arguments.image, arguments.options, trace=report if arguments.verbose else None)
    write(_json(found) if arguments.json else render(found))


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=2)


_LIST_COLUMNS = ("target", "source", "device", "driver", "pid", "present", "health")


def _list(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..mounting.list import mounts

    found = mounts()
    if arguments.json:
        write(_json(found))
        return
    from .table import table, width

    rows = []
    for row in every_text(found):
        devices = [part["device"] for part in row["parts"]] or [row["device"]]
        more = f" +{len(devices) - 1}" if len(devices) > 1 else ""
        row["device"] = ",".join(devices) if arguments.no_trunc else f"{devices[0]}{more}"
        rows.append([str("-" if row[key] is None else row[key]) for key in _LIST_COLUMNS])
    if rows:
        write(table([key.upper() for key in _LIST_COLUMNS], rows, None if arguments.no_trunc else width(), (2, 1, 0)))


def _read(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..export.file import BlobFile, open_export

    with BlobFile(open_export(arguments.source, arguments.options, _context(arguments, report))) as blob:
        if arguments.offset > blob.size:
            raise UsageError(f"--offset {arguments.offset} is beyond the end: {blob.name} has {blob.size} bytes")
        length = blob.size - arguments.offset if arguments.length is None else arguments.length
        blob.sendfile(sys.stdout.fileno(), arguments.offset, length)
