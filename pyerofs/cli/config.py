"""`pyerofs config`: what the configuration files say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from .commands import Commands, Say


def register(commands: Commands) -> None:
    """Add the command."""
    p = commands.add(
        "config",
        "show each option's effective default, and which file sets it",
        "  pyerofs config\n"
        "  pyerofs config quay.io/org/app:1.0         as for this image\n"
        "  pyerofs config --example > /etc/pyerofs/config.toml",
        config,
        options=False,
    )
    p.add_argument(
        "--example", action="store_true", help="print a file with every option, commented out, to start from"
    )
    p.add_argument("image", metavar="IMAGE", nargs="?", default="", help="also apply the section of its registry")


def config(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..config.file import load
    from ..config.render import example, render
    from ..oci.location import Location

    if arguments.example:
        write(example())
        return
    location = Location.parse(arguments.image, image=False) if arguments.image else None
    write(render(load(), location))
