"""Standard output and error: what is printed there, and what becomes of unexpected errors.

The only module that prints. Everything goes through printable.py: registries, images and paths have their say in it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading

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


_lock = threading.Lock()  # of what is shown on standard error
_shown = 0  # lines of show() that stand there, the cursor in the last of them


def say(text: str) -> None:
    """Print a line on standard error, in the place of what show() shows.

    Where that fails, nothing is left to report to.
    """
    with _lock, contextlib.suppress(OSError):
        # One write for the whole line: fetch threads speak too.
        print(f"{_erased()}pyerofs: {one_line(text)}\n", end="", file=sys.stderr, flush=True)


def say_plainly(text: str) -> None:
    """Print a line for a program on standard error: what reads it wants nothing before it."""
    with _lock, contextlib.suppress(OSError):
        print(f"{one_line(text)}\n", end="", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Show lines that the next ones replace, on a terminal; no text: nothing any more."""
    global _shown
    with _lock, contextlib.suppress(OSError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        lines = [one_line(line)[: columns - 1] for line in text.split("\n")]
        print(_erased() + "\n".join(lines), end="", file=sys.stderr, flush=True)
        _shown = len(lines) if text else 0


def _erased() -> str:
    """Return what removes the lines of show() from the terminal."""
    global _shown
    up = f"\x1b[{_shown - 1}A" if _shown > 1 else ""
    found = f"\r{up}\x1b[J" if _shown else ""
    _shown = 0
    return found


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
