"""`pyerofs bundle`: an image for runc and other OCI runtimes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .commands import Commands, Say


def register(commands: Commands) -> None:
    """Add the command."""
    p = commands.add(
        "bundle",
        "make an OCI runtime bundle of an image that is mounted lazily, for runc and the like",
        "  pyerofs bundle quay.io/org/app:1.0 /run/app && runc run -b /run/app app\n"
        "  pyerofs bundle quay.io/org/app:1.0 /run/app ls -l /\n"
        "  pyerofs bundle --rm /run/app               when the container has ended",
        _bundle,
    )
    p.add_argument("-t", "--types", default="erofs", metavar="TYPE", help="erofs, erofs.nbd or erofs.fuse")
    p.add_argument("-r", "--read-only", action="store_true", help="the container cannot change its root")
    p.add_argument("--tty", action="store_true", help="give the container a terminal")
    p.add_argument("--rm", action="store_true", help="remove a bundle (the only argument), with its changes")
    p.add_argument("image", metavar="IMAGE", help="a reference, oci:DIR:NAME, or an archive")
    p.add_argument("directory", metavar="DIR", nargs="?", help="the bundle: made, or empty")
    p.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="instead of the image's command")


def _bundle(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    import os

    from ..bundle.bundle import make_bundle, remove_bundle

    if os.geteuid() != 0:
        raise UsageError("only root can mount, and so make a bundle")
    if arguments.rm:
        if arguments.directory is not None:
            raise UsageError("--rm takes one DIR and nothing else")
        remove_bundle(arguments.image)
        return
    if arguments.directory is None:
        raise UsageError("bundle needs an IMAGE and a DIR (see `pyerofs bundle --help`)")
    make_bundle(
        arguments.image,
        arguments.directory,
        arguments.arguments,
        arguments.options,
        fstype=arguments.types,
        read_only=arguments.read_only,
        terminal=arguments.tty,
        report=report,
    )
