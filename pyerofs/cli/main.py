"""The command line: arguments in, messages and exit status out. What the commands do is elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import unexpected
from . import cache, config, metrics, mount, read, stat
from .commands import Commands, Parser
from .process_list import wipe_passwords
from .terminal import open_standard_files, output_failed, say, say_error, write

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 8  # mount(8)


def make_parser(arguments: Sequence[str] = ()) -> Parser:
    """Return the parser of the whole command line; of `mount` alone where that is the command."""
    parser = Parser(prog="pyerofs", description="EROFS layers of OCI images, mounted and read lazily.")
    parser.add_argument("--version", action="version", version=f"pyerofs {__version__}")
    commands = Commands(parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser))
    for module in (mount, read, cache, stat, metrics, config):
        module.register(commands)
    if "mount" not in arguments[:1]:  # which must start fast
        from . import bundle, containerd, files, images, services, store, trace

        for module in (files, images, store, bundle, containerd, services, trace):
            module.register(commands)
    return parser


def _silent(_: str) -> None:
    """Take what a quiet command has to say."""


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
        parsed = make_parser(given).parse_args(given)
        verbose = getattr(parsed, "verbose", 0)
        status: int | None = parsed.run(parsed, write, _silent if parsed.quiet else say)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as e:
        return output_failed(e, 0)
    except Exception as e:
        error = unexpected(e)
        say_error(error, verbose)
        return error.status
    return status or 0
