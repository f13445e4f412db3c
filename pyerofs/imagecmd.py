"""The commands that make images and move them: their arguments, and what they do. cli.py prints what they say."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .errors import UsageError

if TYPE_CHECKING:
    from .options import OCIOptions

COMMANDS = ("push", "pull")
_EVERY = 0.1  # seconds between two looks of a progress line
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_PLACES = "REFERENCE at a registry, or oci:DIR[:TAG]"


class Console(NamedTuple):
    """`report` says a line for good. `transient` shows one that the next replaces; None: nobody watches."""

    report: Callable[[str], None]
    transient: Callable[[str], None] | None


class Lines:
    """A Meter: a line for each thing that is done, and on a terminal how far the next one is."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._next = 0.0

    def update(self, what: str, done: int, total: int) -> None:
        transient = self._console.transient
        if transient and self._clock() >= self._next:
            self._next = self._clock() + _EVERY
            transient(f"{what}  {_size(done)} of {_size(total)}  {100 * done // max(total, 1)} %")

    def done(self, what: str, size: int, how: str) -> None:
        if self._console.transient:
            self._console.transient("")
        self._console.report(f"{what}  {_size(size)}  {how}")
        self._next = 0.0


def _size(number: float) -> str:
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def add_parsers(make: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """`make(name, text, examples)` gives a command's parser, as cli.py's are."""
    p = make(
        "push",
        "copy an image, with all its platforms, to a registry",
        "  pyerofs push oci:images:app quay.io/org/app:1.0\n"
        "  pyerofs push quay.io/org/app:1.0 registry.example/app:1.0",
    )
    _add_places(p)
    p = make(
        "pull",
        "copy an image, with all its platforms, into an OCI layout directory",
        "  pyerofs pull quay.io/org/app:1.0 oci:images:app\n"
        "  pyerofs pull -o oci.platform=linux/arm64 quay.io/org/app:1.0 oci:images:arm",
    )
    _add_places(p)


def _add_places(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "-O", "--dest-options", action="append", default=[], metavar="OPTIONS",
        help="the same for DEST (default: -o, unless SOURCE is at another registry)",
    )  # fmt: skip
    p.add_argument("source", metavar="SOURCE", help=_PLACES)
    p.add_argument("dest", metavar="DEST", help=_PLACES)


def run(arguments: argparse.Namespace, console: Console) -> str:
    """Does the command; gives what is to be printed. Raises PyerofsError."""
    found: str = _RUN[arguments.command](arguments, console)
    return found


def _copy(arguments: argparse.Namespace, console: Console) -> str:
    from .copyimage import copy_image
    from .place import open_origin, open_target

    source, dest = _options(arguments)
    trace = console.report if arguments.verbose else None
    origin = open_origin(arguments.source, source, trace)
    try:
        target = open_target(arguments.dest, dest, trace, origin)
        try:
            digest = copy_image(origin, target, source.platform, Lines(console))
        finally:
            target.close()
    finally:
        origin.close()
    return f"{digest}  {target.name}"


def _options(arguments: argparse.Namespace) -> tuple[OCIOptions, OCIOptions]:
    """Those for the source and for the destination."""
    from .options import OCIOptions, parse_oci_options
    from .place import same_registry

    source, dest = parse_oci_options(arguments.options), parse_oci_options(arguments.dest_options)
    for options in (source, dest):
        if options.layer is not None or options.blob:
            raise UsageError("oci.layer and oci.blob do not fit here: an image is taken with all its layers")
    if arguments.dest_options:
        return source, dest
    return source, source if same_registry(arguments.source, arguments.dest) else OCIOptions()


_RUN: dict[str, Callable[[argparse.Namespace, Console], str]] = {"push": _copy, "pull": _copy}
