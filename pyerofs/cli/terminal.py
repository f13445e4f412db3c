"""Standard output and error: what is printed there, and what becomes of unexpected errors.

The only module that prints. Everything goes through printable.py: registries, images and paths have their say in it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys

from ..errors import InternalError, PyerofsError
from ..printable import many_lines, one_line

CLEAR = "\x1b[H\x1b[J"  # the terminal, from its upper left corner on


def open_standard_files() -> None:
    """Open what of standard input, output and error was closed by the process that started us.

    Else the next file or socket that is opened would take the number, and get what is printed.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            # Output that is wanted, and cannot go anywhere, is a failure: so it is opened for reading.
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            os.set_inheritable(fd, True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no terminal's encoding is a reason to fail


def say(text: str) -> None:
    """Print a line on standard error. Where that fails, nothing is left to report to."""
    with contextlib.suppress(OSError):
        # One write for the whole line: fetch threads speak too.
        print(f"pyerofs: {one_line(text)}\n", end="", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Show a line that the next one replaces, on a terminal."""
    with contextlib.suppress(OSError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        print(f"\r\x1b[K{one_line(text)[: columns - 1]}", end="", file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Print what was asked for on standard output; it may begin with CLEAR.

    Raises OSError where it cannot be written.
    """
    if text.startswith(CLEAR):
        print(CLEAR, end="")
    print(many_lines(text.removeprefix(CLEAR)), flush=True)


def output_failed(error: OSError, status: int) -> int:
    """Says what could not be read or written, and gives the exit status: `status` if that is a failure already."""
    try:
        sys.stdout.flush()
    except OSError:  # Python would try once more as it ends, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # the reader of our output has closed the pipe
        return status or 1
    say(f"{error.filename or 'output'}: {error.strerror or error}")
    return status or 2


def say_error(error: PyerofsError, verbose: int) -> None:
    """Say what went wrong; with `verbose` also where a bug is."""
    say(str(error))
    if verbose and isinstance(error, InternalError):
        for line in error.trace.splitlines():
            say(line)
