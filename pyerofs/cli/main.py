"""The command line: arguments in, messages and exit status out. What they do is elsewhere."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from .. import __version__
from ..config.options import MOUNT_HELP, OCI_HELP
from ..context import Context, ignore
from ..errors import MountError, UsageError, unexpected
from ..printable import every_text
from . import cache as cache_commands
from . import observe as observe_commands
from .process_list import wipe_passwords
from .terminal import open_standard_files, output_failed, say, say_error, show, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERRUPTED = 8  # mount(8)


class Parser(argparse.ArgumentParser):
    """mount(8)'s exit status for a wrong invocation, and one line instead of the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def _option_table() -> str:
    rows = [*OCI_HELP, *MOUNT_HELP]
    return "\n".join(f"  {name + argument:<31} {text}" for name, argument, text in rows)


def _command(
    commands: argparse._SubParsersAction[Parser], name: str, text: str, examples: str, options: bool = True
) -> Parser:
    table = f"\noptions after -o (a comma in a value is written \\,):\n{_option_table()}\n" if options else ""
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"examples:\n{examples}\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if options:
        parser.add_argument("-o", "--options", action="append", default=[], metavar="OPTIONS", help="see below")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="more output; -vv also traces HTTP")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser


def _parser(arguments: Sequence[str]) -> Parser:
    parser = Parser(prog="pyerofs", description="EROFS layers of OCI images, mounted and read lazily.")
    parser.add_argument("--version", action="version", version=f"pyerofs {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    p = _command(
        commands,
        "mount",
        "mount the EROFS layers of an image, an image file or a block device",
        "  pyerofs mount quay.io/org/app:1.0 /mnt     all EROFS layers as one, by what this kernel offers\n"
        "  pyerofs mount -t erofs.nbd -o oci=0,oci.platform=linux/amd64 quay.io/org/app:1.0 /mnt\n"
        "  pyerofs mount -o oci.upperdir=/var/up,oci.workdir=/var/work quay.io/org/app:1.0 /mnt     writable\n"
        "  pyerofs mount app.erofs /mnt               a local image\n"
        "  pyerofs mount oci:images:app /mnt          an image in an OCI layout directory\n"
        "  pyerofs mount oci-archive:app.tar /mnt     one that was saved: also docker-archive:FILE[:NAME]\n"
        "  pyerofs mount -u /mnt                      unmount",
    )
    p.add_argument(
        "-t", "--types", default="erofs", metavar="TYPE",
        help="erofs (chooses), erofs.nbd, erofs.local or erofs.fuse (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("-u", "--unmount", action="store_true", help="unmount the target")
    p.add_argument("--reattach", action="store_true", help="replace the daemon of the mount at the target")
    p.add_argument("-r", "--read-only", action="store_true", help="same as -o ro")
    p.add_argument("-d", "--debug", type=int, choices=range(10), metavar="0..9", help="verbosity; 9 also traces HTTP")
    p.add_argument("source", metavar="SOURCE", help="an image's reference, oci:DIR[:NAME], an archive, file or device")
    p.add_argument("target", metavar="TARGET", nargs="?", help="the directory to mount at")

    p = _command(commands, "umount", "unmount", "  pyerofs umount /mnt", options=False)
    p.add_argument("-l", "--lazy", action="store_true", help="detach now, clean up once it is no longer in use")
    p.add_argument("target", metavar="TARGET")

    p = _command(
        commands,
        "reattach",
        "replace a mount's daemon by one of this version, while reads go on",
        "  pyerofs reattach /mnt\n"
        "  pyerofs reattach --all                     after an upgrade, or when daemons were killed\n"
        "  pyerofs mount --reattach /dev/nbd0",
    )
    p.add_argument("-a", "--all", action="store_true", help="every mount; also remove what dead mounts have left")
    p.add_argument("target", metavar="TARGET", nargs="?", help="the mount point or the device")

    p = _command(
        commands,
        "disconnect",
        "disconnect a device by force: waiting reads fail, its mounts are detached",
        "  pyerofs disconnect /dev/nbd0",
        options=False,
    )
    p.add_argument("device", metavar="DEVICE", help="the device, or a mount point of it")

    p = _command(
        commands,
        "serve",
        "serve a layer as an NBD export, in the foreground",
        "  pyerofs serve --unix /run/app.sock -o oci=0 quay.io/org/app:1.0\n"
        "  nbdcopy nbd+unix:///?socket=/run/app.sock app.erofs\n"
        "  pyerofs serve --tcp 127.0.0.1:10809 app.erofs",
    )
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--unix", metavar="PATH", help="listen on a Unix socket (mode 0600)")
    where.add_argument("--tcp", metavar="HOST:PORT", help="listen on a TCP port (no encryption, no authentication)")
    p.add_argument("source", metavar="SOURCE")

    p = _command(
        commands,
        "inspect",
        "show an image's platforms and layers, and which of them are EROFS",
        "  pyerofs inspect quay.io/org/app:1.0\n  pyerofs inspect --json localhost:5000/app | jq .layers",
    )
    p.add_argument("--json", action="store_true", help="as JSON")
    p.add_argument("image", metavar="IMAGE")

    p = _command(
        commands,
        "list",
        "list mounts, with device, daemon, state, and how much of each is cached",
        "  pyerofs list --json",
        options=False,
    )
    p.add_argument("--json", action="store_true", help="as JSON")

    p = _command(
        commands,
        "read",
        "write a range of a layer to standard output",
        "  pyerofs read -o oci=0 quay.io/org/app:1.0 > app.erofs\n"
        "  pyerofs read --offset 1024 --length 128 app.erofs | xxd",
    )
    p.add_argument("--offset", type=_number, default=0, metavar="N", help="bytes from the start (default: 0)")
    p.add_argument("--length", type=_number, metavar="N", help="bytes (default: up to the end)")
    p.add_argument("source", metavar="SOURCE")

    cache_commands.add_parser(commands, functools.partial(_command, options=False))
    observe_commands.add_parsers(commands, functools.partial(_command, options=False))
    if "mount" not in arguments[:1]:  # which must start fast
        from .images import add_parsers

        add_parsers(lambda name, text, examples: _command(commands, name, text, examples))
    return parser


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)


def _context(arguments: argparse.Namespace, report: Callable[[str], None]) -> Context:
    return Context(report, report if arguments.verbose > 1 else None)


def _mount(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from ..mounting.mount import mount, unmount

    if arguments.unmount:
        unmount(arguments.target or arguments.source)
        return
    if arguments.reattach:
        from ..mounting.reattach import reattach

        reattach(arguments.target or arguments.source, arguments.options, report=report)
        return
    if arguments.target is None:
        raise UsageError("mount needs a SOURCE and a TARGET (see `pyerofs mount --help`)")
    verbosity = arguments.verbose if arguments.debug is None else (2 if arguments.debug >= 7 else arguments.debug // 3)
    mount(
        arguments.source,
        arguments.target,
        [*arguments.options, "ro"] if arguments.read_only else arguments.options,
        fstype=arguments.types,
        verbosity=verbosity,
        report=report,
        watch=show if _is_watched(arguments) else None,
    )
    from .notify import notify

    notify("READY=1")


def _umount(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from ..mounting.mount import unmount

    unmount(arguments.target, lazy=arguments.lazy)


def _reattach(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from ..mounting.reattach import reattach, reattach_all
    from .notify import notify

    if arguments.all == (arguments.target is not None):
        raise UsageError("reattach needs a TARGET, or --all (see `pyerofs reattach --help`)")
    if not arguments.all:
        reattach(arguments.target, arguments.options, report=report)
    elif failed := reattach_all(report=report):
        raise MountError(f"{failed} of the mounts could not be given a new daemon")
    notify("READY=1")


def _disconnect(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from ..mounting.reattach import disconnect

    disconnect(arguments.device)


def _serve(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from ..export.file import open_export
    from ..export.serve import listen, serve
    from .notify import notify

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


def _inspect(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from ..images.inspect import inspect, render

    found = inspect(arguments.image, arguments.options, trace=report if arguments.verbose else None)
    write(_json(found) if arguments.json else render(found))


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=2)


_LIST_COLUMNS = ("target", "source", "device", "driver", "pid", "present", "health")


def _list(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from ..mounting.list import mounts

    found = mounts()
    if arguments.json:
        write(_json(found))
        return
    for row in every_text(found):
        row["device"] = ",".join(part["device"] for part in row["parts"]) or row["device"]
        write("  ".join(str("-" if row[key] is None else row[key]) for key in _LIST_COLUMNS))


def _read(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from ..export.file import BlobFile, open_export

    with BlobFile(open_export(arguments.source, arguments.options, _context(arguments, report))) as blob:
        if arguments.offset > blob.size:
            raise UsageError(f"--offset {arguments.offset} is beyond the end: {blob.name} has {blob.size} bytes")
        length = blob.size - arguments.offset if arguments.length is None else arguments.length
        blob.sendfile(sys.stdout.fileno(), arguments.offset, length)


def _cache(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    cache_commands.run(arguments, write, report)


def _image(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from ..images.progress import Console
    from .images import run

    write(run(arguments, Console(report, show if _is_watched(arguments) else None)))


def _is_watched(arguments: argparse.Namespace) -> bool:
    """Whether to show progress."""
    return not arguments.quiet and sys.stderr.isatty()


def _view(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    observe_commands.COMMANDS[arguments.command](arguments, write)


_COMMANDS = {
    "mount": _mount,
    "umount": _umount,
    "reattach": _reattach,
    "disconnect": _disconnect,
    "serve": _serve,
    "inspect": _inspect,
    "list": _list,
    "read": _read,
    "cache": _cache,
    **dict.fromkeys(observe_commands.COMMANDS, _view),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status, mount(8)'s."""
    open_standard_files()
    status = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        return output_failed(error, status)
    return status


def _run(arguments: Sequence[str] | None) -> int:
    verbose = 0
    try:
        wipe_passwords()
        given = sys.argv[1:] if arguments is None else list(arguments)
        parsed = _parser(given).parse_args(given)
        verbose = getattr(parsed, "verbose", 0)
        report = ignore if parsed.quiet else say
        _COMMANDS.get(parsed.command, _image)(parsed, report)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as e:
        return output_failed(e, 0)
    except Exception as e:
        error = unexpected(e)
        say_error(error, verbose)
        return error.status
    return 0
