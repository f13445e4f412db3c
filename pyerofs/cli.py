"""The command line: arguments in, messages and exit status out. The only module that prints."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from . import __version__, cachecmd, viewcmd
from .errors import MountFailure, PyerofsError, UsageError
from .options import MOUNT_HELP, OCI_HELP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

INTERRUPTED = 8  # mount(8)
INTERNAL = 4


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
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: the conversation too")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
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
    p.add_argument("--reattach", action="store_true", help="give the mount at the target a new daemon")
    p.add_argument("-r", "--read-only", action="store_true", help="same as -o ro")
    p.add_argument("-d", "--debug", type=int, choices=range(10), metavar="0..9", help="how much to say; 9: everything")
    p.add_argument("source", metavar="SOURCE", help="an image's reference, oci:DIR[:NAME], an archive, file or device")
    p.add_argument("target", metavar="TARGET", nargs="?", help="the directory to mount at")

    p = _command(commands, "umount", "unmount", "  pyerofs umount /mnt", options=False)
    p.add_argument("-l", "--lazy", action="store_true", help="detach now, clean up when nobody uses it any more")
    p.add_argument("target", metavar="TARGET")

    p = _command(
        commands,
        "reattach",
        "give a mount a new daemon, of this version, while reads go on",
        "  pyerofs reattach /mnt\n"
        "  pyerofs reattach --all                     after an upgrade, or when daemons were killed\n"
        "  pyerofs mount --reattach /dev/nbd0",
    )
    p.add_argument("-a", "--all", action="store_true", help="every mount; records of what has gone are removed")
    p.add_argument("target", metavar="TARGET", nargs="?", help="the mount point or the device")

    p = _command(
        commands,
        "disconnect",
        "end a device by force: reads that wait get an I/O error, its mounts are detached",
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
        "list what is mounted where, by which device and daemon, how much of it is present, and how it is",
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

    cachecmd.add_parser(commands, functools.partial(_command, options=False))
    viewcmd.add_parsers(commands, functools.partial(_command, options=False))
    if "mount" not in arguments[:1]:  # which must start fast
        from .imagecmd import add_parsers

        add_parsers(lambda name, text, examples: _command(commands, name, text, examples))
    return parser


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)


def _say(text: str) -> None:
    # One write for the whole line: fetch threads speak too.
    print(f"pyerofs: {text}\n", end="", file=sys.stderr, flush=True)


def _silent(_: str) -> None:
    pass


def _show(text: str) -> None:
    """A line of a terminal that the next one replaces."""
    columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    print(f"\r\x1b[K{text[: columns - 1]}", end="", file=sys.stderr, flush=True)


_WIPED = (b"oci.password=", b"oci.proxy=")  # the URL of a proxy may hold a password


def wipe_passwords() -> None:
    """Overwrites passwords in this process's own arguments, where every user of the machine can read them.

    The kernel shows the memory that argv was put into, so that is what is changed; there is no Python interface for it.
    """
    with open("/proc/self/cmdline", "rb") as f:
        shown = f.read()
    if not any(name in shown for name in _WIPED):
        return
    import ctypes  # not at the top: 10 ms that few need

    with open("/proc/self/stat", "rb") as f:
        start = int(f.read().rpartition(b")")[2].split()[45])  # proc(5): arg_start
    for first, end in secret_spans(shown):
        ctypes.memset(start + first, ord("*"), end - first)


def secret_spans(arguments: bytes) -> Iterator[tuple[int, int]]:
    """Where in the arguments (each ended by a NUL) the values of secret options are; as options.split() reads them."""
    for name in _WIPED:
        at = 0
        while (at := arguments.find(name, at)) >= 0:
            first = end = at = at + len(name)
            if arguments[end : end + 1] == b'"':  # up to the closing quote, which a comma does not end
                closing = re.compile(rb'["\0]').search(arguments, end + 1)
                end = closing.start() if closing else len(arguments)
            while arguments[end : end + 1] not in (b"", b"\0", b","):
                end += 2 if arguments[end : end + 1] == b"\\" else 1
            yield first, min(end, len(arguments))


def _mount(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from .session import mount, unmount

    if arguments.unmount:
        unmount(arguments.target or arguments.source)
        return
    if arguments.reattach:
        from .reattach import reattach

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
        watch=_show if _is_watched(arguments) else None,
    )
    from .notify import notify

    notify("READY=1")


def _umount(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from .session import unmount

    unmount(arguments.target, lazy=arguments.lazy)


def _reattach(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from .notify import notify
    from .reattach import reattach, reattach_all

    if arguments.all == (arguments.target is not None):
        raise UsageError("reattach needs a TARGET, or --all (see `pyerofs reattach --help`)")
    if not arguments.all:
        reattach(arguments.target, arguments.options, report=report)
    elif failed := reattach_all(report=report):
        raise MountFailure(f"{failed} of the mounts have no new daemon")
    notify("READY=1")


def _disconnect(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from .reattach import disconnect

    disconnect(arguments.device)


def _serve(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from .blobfile import open_export
    from .notify import notify
    from .serve import listen, serve

    listener, url = listen(arguments.unix, arguments.tcp)
    try:
        export = open_export(
            arguments.source, arguments.options, log=report, trace=report if arguments.verbose > 1 else None
        )

        def ready() -> None:
            print(f"ready: {url}", flush=True)
            notify("READY=1")

        serve(export, listener, report, ready=ready)
    finally:
        listener.close()
        if arguments.unix:
            os.unlink(arguments.unix)


def _inspect(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from .inspect import inspect, render

    found = inspect(arguments.image, arguments.options, trace=report if arguments.verbose else None)
    print(_json(found) if arguments.json else render(found))


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=2)


_LIST_COLUMNS = ("target", "source", "device", "driver", "pid", "present", "health")


def _list(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from .inspect import mounts

    found = mounts()
    if arguments.json:
        print(_json(found))
        return
    for row in found:
        row["device"] = ",".join(part["device"] for part in row["parts"]) or row["device"]
        print("  ".join(str("-" if row[key] is None else row[key]) for key in _LIST_COLUMNS))


def _read(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from .blobfile import BlobFile, open_export

    trace = report if arguments.verbose > 1 else None
    with BlobFile(open_export(arguments.source, arguments.options, log=report, trace=trace)) as blob:
        if arguments.offset > blob.size:
            raise UsageError(f"--offset {arguments.offset} is beyond the end: {blob.name} has {blob.size} bytes")
        length = blob.size - arguments.offset if arguments.length is None else arguments.length
        blob.sendfile(sys.stdout.fileno(), arguments.offset, length)


def _cache(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    cachecmd.run(arguments, lambda line: print(line, flush=True), report)


def _image(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    from .imagecmd import run
    from .progress import Console

    print(run(arguments, Console(report, _show if _is_watched(arguments) else None)))


def _is_watched(arguments: argparse.Namespace) -> bool:
    """Whether somebody may want to see how far it is."""
    return not arguments.quiet and sys.stderr.isatty()


def _view(arguments: argparse.Namespace, report: Callable[[str], None]) -> None:
    viewcmd.COMMANDS[arguments.command](arguments, lambda text: print(text, flush=True))


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
    **dict.fromkeys(viewcmd.COMMANDS, _view),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status, mount(8)'s."""
    try:
        wipe_passwords()
        given = sys.argv[1:] if arguments is None else list(arguments)
        parsed = _parser(given).parse_args(given)
        report = _silent if parsed.quiet else _say
        _COMMANDS.get(parsed.command, _image)(parsed, report)
        sys.stdout.flush()
    except PyerofsError as e:
        _say(str(e))
        return e.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        _say(f"{e.filename or 'output'}: {e.strerror}")
        return 2
    return 0
