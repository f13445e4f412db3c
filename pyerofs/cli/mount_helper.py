"""mount(8)'s helpers: mount.erofs.nbd, mount.erofs.fuse and mount.erofs.oci, for fstab and systemd's mount units.

    mount.erofs.TYPE SOURCE TARGET [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]

As mount(8) calls them ("EXTERNAL HELPERS"). They become `pyerofs mount`.
"""

from __future__ import annotations

import getopt
import sys
from typing import TYPE_CHECKING

from ..errors import PyerofsError, UsageError
from . import terminal
from .start import run

if TYPE_CHECKING:
    from collections.abc import Sequence


def nbd() -> int:
    return main("erofs.nbd", sys.argv[1:])


def fuse() -> int:
    return main("erofs.fuse", sys.argv[1:])


def oci() -> int:
    return main("erofs.oci", sys.argv[1:])


def main(fstype: str, arguments: Sequence[str]) -> int:
    """Do what mount(8) asks for, and return the exit status."""
    terminal.open_standard_files()
    try:
        command, fake, namespace = _translate(fstype, arguments)
        if namespace:
            from ..kernel.mountpoint import enter_namespace

            enter_namespace(namespace)
        if fake:
            _check(command)
            return 0
    except PyerofsError as error:
        terminal.say_error(error, 0)
        return error.status
    return run(command)


def _translate(fstype: str, arguments: Sequence[str]) -> tuple[list[str], bool, str]:
    """Return the arguments of `pyerofs`, whether nothing is to be mounted, and the namespace ("" for this one)."""
    from ..config.option_text import as_text, split

    usage = f"mount.{fstype} SOURCE TARGET [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]"
    try:
        options, places = getopt.gnu_getopt(list(arguments), "sfnvrwN:o:t:")
    except getopt.GetoptError as error:
        raise UsageError(f"{error}: usage: {usage}") from None
    given = {name for name, _ in options}
    items = [item for name, value in options if name == "-o" for item in split(value)]
    # mount(8) writes rw where neither is asked for, so it means nothing.
    texts = [as_text(item) for item in items if item != "rw"] + ["ro"] * ("-r" in given)
    if len(places) == 1 and "remount" in items:
        places = [places[0], places[0]]
    if len(places) != 2:
        raise UsageError(f"usage: {usage}")
    command = ["mount", "-t", next((value for name, value in options if name == "-t"), fstype)]
    command += ["-v"] * ("-v" in given)
    command += [word for text in texts for word in ("-o", text)]
    namespace = next((value for name, value in options if name == "-N"), "")
    return [*command, "--", *places], "-f" in given, namespace


def _check(command: list[str]) -> None:
    """Check what can be checked without a mount. Raises UsageError."""
    from ..config.options import names_image, parse_mount_options
    from ..kernel.mountpoint import check_target
    from ..oci.location import Location

    *_, source, target = command
    texts = [command[at + 1] for at, word in enumerate(command) if word == "-o"]
    parse_mount_options(texts, command[2])
    Location.parse(source, image=names_image(texts, command[2]))
    check_target(target)
