"""The commands that make images and move them: their arguments, and what they do. cli/main.py prints what they say."""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..context import Context
from ..errors import UsageError
from ..images.progress import Console, Lines
from ..oci.location import ARCHIVES, IMAGES, Location, same_registry

if TYPE_CHECKING:
    from ..config.options import ReadOptions
    from ..images.layer import Recipe
    from ..images.writer import CopyWriter
    from ..source.image_reader import ImageReader


def add_parsers(make: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """`make(name, text, examples)` gives a command's parser, as cli/main.py's are."""
    p = make(
        "convert",
        "make an image of EROFS layers out of an ordinary one (needs root and mkfs.erofs)",
        "  pyerofs convert quay.io/org/app:1.0 registry.example/app:1.0-erofs\n"
        "  pyerofs convert -o oci.platform=linux/amd64 docker-archive:app.tar oci:images:app",
    )
    _add_recipe(p)
    _add_places(p, f"{IMAGES}, {ARCHIVES}")
    p = make(
        "build",
        "make an image out of directories and EROFS files, one layer each, base first",
        "  pyerofs build rootfs/ registry.example/app:1.0\n  pyerofs build base.erofs changes/ oci:images:app",
    )
    _add_recipe(p)
    p.add_argument("sources", metavar="SOURCE", nargs="+", help="a directory or an EROFS file")
    p.add_argument("dest", metavar="DEST", help=IMAGES)
    p = make(
        "push",
        "copy an image, with all its platforms, to a registry",
        "  pyerofs push oci:images:app quay.io/org/app:1.0\n"
        "  pyerofs push quay.io/org/app:1.0 registry.example/app:1.0",
    )
    _add_places(p, f"{IMAGES}, {ARCHIVES}")
    p = make(
        "pull",
        "copy an image, with all its platforms, into an OCI layout directory",
        "  pyerofs pull quay.io/org/app:1.0 oci:images:app\n"
        "  pyerofs pull -o oci.platform=linux/arm64 quay.io/org/app:1.0 oci:images:arm",
    )
    _add_places(p, f"{IMAGES}, {ARCHIVES}")


def _add_recipe(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--chunk-size", type=_chunk_size, metavar="SIZE",
        help="size of a chunk, the unit of verification, with K or M (default: 128K)",
    )  # fmt: skip
    p.add_argument(
        "--compress", type=_level, default=0, metavar="zstd[:LEVEL]",
        help="compress each chunk by itself, 1 (fastest) to 22 (smallest; default: 3); reading needs zstandard too",
    )  # fmt: skip
    p.add_argument("--verity", action="store_true", help="add a dm-verity tree, for mount -o oci.verity")


def _recipe(arguments: argparse.Namespace) -> Recipe:
    from ..erofs.chunk_index import CHUNK_SIZE
    from ..images.layer import Recipe

    return Recipe(arguments.chunk_size or CHUNK_SIZE, arguments.verity, arguments.compress)


def _chunk_size(text: str) -> int:
    from ..source.chunked import CHUNK_MAX  # what is read of such layers

    found = re.fullmatch(r"([0-9]{1,9})([KM]?)", text)
    size = int(found[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[found[2]] if found else 0
    if not 4096 <= size <= CHUNK_MAX or size & (size - 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a power of two from 4K to {CHUNK_MAX >> 20}M")
    return size


def _level(text: str) -> int:
    found = re.fullmatch(r"zstd(?::([0-9]{1,2}))?", text)
    level = int(found[1] or 3) if found else 0
    if not 1 <= level <= 22:
        raise argparse.ArgumentTypeError(f"{text!r} is not zstd, or zstd:LEVEL from zstd:1 to zstd:22")
    return level


def _add_places(p: argparse.ArgumentParser, source: str) -> None:
    p.add_argument(
        "-O", "--dest-options", action="append", default=[], metavar="OPTIONS",
        help="the same for DEST (default: -o, unless SOURCE is at another registry)",
    )  # fmt: skip
    p.add_argument("source", metavar="SOURCE", help=source)
    p.add_argument("dest", metavar="DEST", help=IMAGES)


def run(arguments: argparse.Namespace, console: Console) -> str:
    """Run the command and return what is to be printed. Raises PyerofsError."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was unpacked is removed
    try:
        return _RUN[arguments.command](arguments, console)
    finally:
        signal.signal(signal.SIGTERM, before)


def _copy(arguments: argparse.Namespace, console: Console) -> str:
    from ..images.copy import copy_image

    return _between(arguments, console, lambda o, t, options, meter: copy_image(o, t, options.platform, meter))


def _convert(arguments: argparse.Namespace, console: Console) -> str:
    from ..images.convert import convert_image

    recipe = _recipe(arguments)

    def work(origin: ImageReader, target: CopyWriter, options: ReadOptions, meter: Lines) -> str:
        def warn(text: str) -> None:
            console.report(f"{origin.name}: {text}")

        return convert_image(origin, target, options.platform, recipe, meter, warn, options.unpacked_max)

    return _between(arguments, console, work)


def _build(arguments: argparse.Namespace, console: Console) -> str:
    from ..config.options import parse_oci_options
    from ..images.build import build_image
    from ..images.writer import open_writer
    from ..oci.platforms import Platform

    options = parse_oci_options(arguments.options)
    _check(options)
    target = open_writer(Location.parse(arguments.dest), options, _context(arguments, console))
    try:
        platform = options.platform or Platform.host()
        digest = build_image(arguments.sources, target, platform, _recipe(arguments), Lines(console))
    finally:
        target.close()
    return f"{digest}  {target.name}"


def _between(
    arguments: argparse.Namespace,
    console: Console,
    work: Callable[[ImageReader, CopyWriter, ReadOptions, Lines], str],
) -> str:
    from ..images.writer import open_writer
    from ..source.image_reader import open_reader

    where, to = Location.parse(arguments.source), Location.parse(arguments.dest)
    source, dest = _options(arguments, where, to)
    context = _context(arguments, console)
    origin = open_reader(where, source, context)
    try:
        target = open_writer(to, dest, context, origin)
        try:
            digest = work(origin, target, source, Lines(console))
        finally:
            target.close()
    finally:
        origin.close()
    return f"{digest}  {target.name}"


def _context(arguments: argparse.Namespace, console: Console) -> Context:
    return Context(console.report, console.report if arguments.verbose else None)


def _options(arguments: argparse.Namespace, where: Location, to: Location) -> tuple[ReadOptions, ReadOptions]:
    """Those for the source and for the destination."""
    from ..config.options import ReadOptions, parse_oci_options

    source, dest = parse_oci_options(arguments.options), parse_oci_options(arguments.dest_options)
    _check(source)
    _check(dest)
    if arguments.dest_options:
        return source, dest
    return source, source if same_registry(where, to) else ReadOptions()


def _check(options: ReadOptions) -> None:
    if options.layer is not None or options.blob:
        raise UsageError("oci.layer and oci.blob cannot be used here: this command takes whole images")


_RUN: dict[str, Callable[[argparse.Namespace, Console], str]] = {
    "convert": _convert,
    "build": _build,
    "push": _copy,
    "pull": _copy,
}
