"""`pyerofs convert`, `build`, `push` and `pull`: images made and moved."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..images.progress import Console, Lines
from .progress import add_progress, console_of

if TYPE_CHECKING:
    from ..config.options import ReadOptions
    from ..context import Context
    from ..images.layer import Recipe
    from ..images.writer import CopyWriter
    from ..oci.location import Location
    from ..source.image_reader import ImageReader
    from .commands import Commands, Run, Say

IMAGES = "REFERENCE at a registry, or oci:DIR[:NAME]"
ARCHIVES = "oci-archive:FILE[:NAME], or docker-archive:FILE[:NAME]"

_LAYER_TYPES = ("vnd.erofs", "vnd.erofs.layer.v1", "vnd.oci.image.layer.v1.erofs")


def register(commands: Commands) -> None:
    """Add these commands."""
    p = commands.add(
        "convert",
        "make an image of EROFS layers out of an ordinary one",
        "  pyerofs convert quay.io/org/app:1.0 registry.example/app:1.0-erofs\n"
        "  pyerofs convert -o oci.platform=linux/amd64 docker-archive:app.tar oci:images:app\n"
        "  pyerofs convert --index quay.io/org/app:1.0 quay.io/org/app:1.0",
        _in_order(_convert),
    )
    _add_recipe(p)
    p.add_argument(
        "--index", action="store_true",
        help="copy the ordinary image too, first in one index, for engines that do not know EROFS",
    )  # fmt: skip
    p.add_argument("--merge", action="store_true", help="make one layer of all of them")
    p.add_argument(
        "--optimize", action="append", default=[], metavar="TRACE",
        help="put what a start reads first, by a trace (`pyerofs trace`); may be given several times",
    )  # fmt: skip
    p.add_argument(
        "--optimize-for", action="append", default=[], metavar="COMMAND",
        help="the same by running this command in the image now, as root in namespaces, for up to a minute",
    )  # fmt: skip
    _add_places(p, f"{IMAGES}, {ARCHIVES}")
    p = commands.add(
        "build",
        "make an image out of directories and EROFS files, one layer each, base first",
        "  pyerofs build rootfs/ registry.example/app:1.0\n  pyerofs build base.erofs changes/ oci:images:app",
        _in_order(_build),
    )
    _add_recipe(p)
    p.add_argument("sources", metavar="SOURCE", nargs="+", help="a directory or an EROFS file")
    p.add_argument("dest", metavar="DEST", help=IMAGES)
    p = commands.add(
        "index",
        "make indexes of an ordinary image, so that others mount its very layers lazily",
        "  pyerofs index quay.io/org/app:1.0\n"
        "  pyerofs mount -o oci.soci=v1 quay.io/org/app:1.0 /mnt\n"
        "  pyerofs index --tag 1.0-lazy quay.io/org/app:1.0\n"
        "  pyerofs mount quay.io/org/app:1.0-lazy /mnt",
        _in_order(_index),
    )
    p.add_argument(
        "--tag", metavar="TAG",
        help="write a copy of the image's manifest that names its index, under this tag of the same repository "
        "(default: the image stays as it is, and the index refers to it)",
    )  # fmt: skip
    p.add_argument(
        "--min-size", type=_layer_size, metavar="SIZE",
        help="no index for smaller layers, with K, M or G (default: 10M): they are fetched at once",
    )  # fmt: skip
    add_progress(p)
    p.add_argument("image", metavar="IMAGE", help=IMAGES)
    p = commands.add(
        "push",
        "copy an image, with all its platforms, to a registry",
        "  pyerofs push oci:images:app quay.io/org/app:1.0\n"
        "  pyerofs push quay.io/org/app:1.0 registry.example/app:1.0",
        _in_order(_copy),
    )
    _add_copying(p)
    p = commands.add(
        "pull",
        "copy an image, with all its platforms, into an OCI layout directory; or give it to containerd, to be lazy",
        "  pyerofs pull quay.io/org/app:1.0 oci:images:app\n"
        "  pyerofs pull -o oci.platform=linux/arm64 quay.io/org/app:1.0 oci:images:arm\n"
        "  pyerofs pull --containerd /run/containerd/containerd.sock -n k8s.io quay.io/org/app:1.0",
        _in_order(_pull),
    )
    _add_places(p, f"{IMAGES}, {ARCHIVES}", optional=True)
    p.add_argument("--containerd", metavar="SOCKET", help="instead of DEST: containerd, which has pyerofs")
    p.add_argument("-n", "--namespace", metavar="NAME", default="default", help="containerd's (default: %(default)s)")
    p.add_argument(
        "--snapshotter", metavar="NAME", default="pyerofs", help="pyerofs's name in containerd (default: %(default)s)"
    )
    add_progress(p)


def _add_recipe(p: argparse.ArgumentParser) -> None:
    add_progress(p)
    p.add_argument(
        "--chunk-size", type=_chunk_size, metavar="SIZE",
        help="size of a chunk, the unit of verification, with K or M (default: 128K)",
    )  # fmt: skip
    p.add_argument(
        "--compress", type=_level, default=0, metavar="zstd[:LEVEL]",
        help="compress each chunk by itself, 1 (fastest) to 22 (smallest; default: 3); reading needs zstandard too",
    )  # fmt: skip
    p.add_argument(
        "--layer-type", choices=_LAYER_TYPES, default=_LAYER_TYPES[0], metavar="TYPE",
        help=f"media type of the layers, without application/: {', '.join(_LAYER_TYPES)} (default: the first)",
    )  # fmt: skip
    p.add_argument("--verity", action="store_true", help="add a dm-verity tree, for mount -o oci.verity")


def _recipe(arguments: argparse.Namespace) -> Recipe:
    from ..erofs.chunk_index import CHUNK_SIZE
    from ..images.layer import LAYER_TYPES, Recipe

    if arguments.compress and not LAYER_TYPES[arguments.layer_type]:
        raise UsageError(f"layers of the type {arguments.layer_type} are not compressed: leave out --compress")
    merge = getattr(arguments, "merge", False)  # build has as many layers as it is told
    size = arguments.chunk_size or CHUNK_SIZE
    return Recipe(size, arguments.verity, arguments.compress, arguments.layer_type, merge)


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


def _add_copying(p: argparse.ArgumentParser) -> None:
    add_progress(p)
    _add_places(p, f"{IMAGES}, {ARCHIVES}")


def _add_places(p: argparse.ArgumentParser, source: str, *, optional: bool = False) -> None:
    p.add_argument(
        "-O", "--dest-options", action="append", default=[], metavar="OPTIONS",
        help="the same for DEST (default: -o, unless SOURCE is at another registry)",
    )  # fmt: skip
    p.add_argument("source", metavar="SOURCE", help=source)
    p.add_argument("dest", metavar="DEST", help=IMAGES, nargs="?" if optional else None)


def _in_order(run: Run) -> Run:
    """Have what a command was making removed when it is ended."""

    def run_in_order(arguments: argparse.Namespace, write: Say, report: Say) -> None:
        from ..events import sigterm_interrupts

        with sigterm_interrupts():
            run(arguments, write, report)

    return run_in_order


def _copy(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..images.copy import copy_image

    write(
        _between(
            arguments,
            report,
            console_of(arguments, report),
            lambda o, t, options, meter: copy_image(o, t, options.platform, meter),
        )
    )


def _pull(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    if arguments.containerd is None:
        if arguments.dest is None:
            raise UsageError("pull needs a SOURCE and a DEST, or --containerd (see `pyerofs pull --help`)")
        _copy(arguments, write, report)
        return
    if arguments.dest is not None:
        raise UsageError(f"pull --containerd has no DEST: {arguments.dest}")
    from ..config import file as config_file
    from ..config.options import parse_oci_options
    from ..oci.location import Location
    from ..snapshotter.pull import pull

    defaults = config_file.load().defaults(Location("registry", arguments.source))
    options = parse_oci_options(arguments.options, defaults)
    _check(options)
    where = (arguments.containerd, arguments.namespace, arguments.snapshotter)
    context = _context(arguments, report)
    write(f"{pull(arguments.source, *where, options, report, context)}  {arguments.source}")


def _convert(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..images.convert import Conversion, convert_image
    from ..images.made_layers import find_made
    from ..oci.location import Location
    from ..source.image_reader import open_reader

    recipe = _recipe(arguments)
    where, to = Location.parse(arguments.source), Location.parse(arguments.dest)
    _, dest = _options(arguments, where, to)
    console = console_of(arguments, report)
    trace = None
    if arguments.optimize or arguments.optimize_for:
        from ..mounting.observe import digest_of, read_traces

        trace = read_traces(arguments.optimize, arguments.optimize_for, arguments.source, arguments.options, report)
        recipe = recipe._replace(trace=digest_of(trace))

    def work(origin: ImageReader, target: CopyWriter, options: ReadOptions, meter: Lines) -> str:
        def warn(text: str) -> None:
            report(f"{origin.name}: {text}")

        made = find_made(lambda: open_reader(to, dest))
        return convert_image(origin, target, Conversion(recipe, arguments.index, options, made, trace), meter, warn)

    write(_between(arguments, report, console, work))


def _layer_size(text: str) -> int:
    from ..quantity import parse_size

    try:
        return parse_size("--min-size", text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _index(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..config.options import parse_oci_options
    from ..images.index_image import LAYER_MIN, Indexing, index_image
    from ..images.writer import RegistryWriter, open_writer
    from ..oci.location import Location
    from ..source.image_reader import open_reader

    options = parse_oci_options(arguments.options)
    _check(options)
    where = Location.parse(arguments.image)
    console = console_of(arguments, report)
    context = _context(arguments, report)
    origin = open_reader(where, options, context)
    try:
        target = open_writer(where.with_tag(arguments.tag or "latest"), options, context, origin)
        try:
            if not arguments.tag and not isinstance(target, RegistryWriter):
                raise UsageError(f"{where}: only at a registry can an index refer to an image: give it a --tag here")
            refer = None if arguments.tag or not isinstance(target, RegistryWriter) else target.add_referrer
            how = Indexing(refer, options, LAYER_MIN if arguments.min_size is None else arguments.min_size)
            digest, made = index_image(origin, target, how, Lines(console), report)
        finally:
            target.close()
    finally:
        origin.close()
    if digest:
        write(f"{digest}  {target.name}")
    for each in made if not digest else ():
        write(f"{each.made.digest}  index of {origin.name}{f' for {each.where}' if each.where else ''}")


def _build(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..config.options import parse_oci_options
    from ..images.build import build_image
    from ..images.writer import open_writer
    from ..oci.location import Location
    from ..oci.platforms import Platform

    options = parse_oci_options(arguments.options)
    _check(options)
    console = console_of(arguments, report)
    target = open_writer(Location.parse(arguments.dest), options, _context(arguments, report))
    try:
        platform = options.platform or Platform.host()
        digest = build_image(arguments.sources, target, platform, _recipe(arguments), options, Lines(console), report)
    finally:
        target.close()
    write(f"{digest}  {target.name}")


def _between(
    arguments: argparse.Namespace,
    report: Say,
    console: Console,
    work: Callable[[ImageReader, CopyWriter, ReadOptions, Lines], str],
) -> str:
    from ..images.writer import open_writer
    from ..oci.location import Location
    from ..source.image_reader import open_reader

    where, to = Location.parse(arguments.source), Location.parse(arguments.dest)
    source, dest = _options(arguments, where, to)
    context = _context(arguments, report)
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


def _context(arguments: argparse.Namespace, report: Say) -> Context:
    from ..context import Context

    return Context(report, report if arguments.verbose else None)


def _options(arguments: argparse.Namespace, where: Location, to: Location) -> tuple[ReadOptions, ReadOptions]:
    """Those for the source and for the destination."""
    from ..config.options import ReadOptions, parse_oci_options
    from ..oci.location import same_registry

    source, dest = parse_oci_options(arguments.options), parse_oci_options(arguments.dest_options)
    _check(source)
    _check(dest)
    if arguments.dest_options:
        return source, dest
    return source, source if same_registry(where, to) else ReadOptions()


def _check(options: ReadOptions) -> None:
    if options.layer is not None or options.blob:
        raise UsageError("oci.layer and oci.blob cannot be used here: this command takes whole images")
