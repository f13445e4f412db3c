"""Programs that we start: where they are found, what they get of this process, and that none of them waits for us.

A program is looked for in absolute directories only, and runs in /: so the current directory never decides what runs,
not even where PATH, LD_LIBRARY_PATH or the like name places relative to it. Otherwise it gets the environment that we
have. Each has a session of its own, so that it finds no terminal and can be ended with all that it has started; and
each of its outputs is read to the end, kept for us or not: one that is not read would stop it for ever once the pipe
is full.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from subprocess import Popen

SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"  # not in every user's PATH
_END = 1.0  # seconds for a program to go once it has been killed: one that is stuck in the kernel does not
_LINE_MAX = 4096  # bytes of a line; what is longer comes in pieces


class Result(NamedTuple):
    """`status`: of the exit, or minus the signal."""

    status: int
    out: bytes
    err: bytes


class TooSlowError(Exception):
    """The program was ended, since its time was up."""


def find(name: str, environ: Mapping[str, str] | None = None, *, system: bool = True) -> str | None:
    """Return the absolute path of a program, or None.

    It is looked for in PATH (of `environ`, else ours) and with `system` in the system's own directories. What PATH
    names relative to the current directory is passed over.
    """
    import shutil

    path = (os.environ if environ is None else environ).get("PATH", os.defpath)
    directories = [d for d in f"{path}:{SYSTEM if system else ''}".split(":") if os.path.isabs(d)]
    # An empty path would be the default one to which().
    return shutil.which(name, path=":".join(directories)) if directories else None


def start(
    command: Sequence[str],
    *,
    stdin: bool = False,
    stdout: bool = False,
    stderr: bool = False,
    environ: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Popen[bytes]:
    """Start `command`, whose first word is an absolute path; the program sees its name alone, as from a shell.

    Each stream that is asked for is a pipe, which the caller has to read (or to give to a Drain); the others lead
    nowhere. Raises OSError; ValueError for an environment that cannot be passed on.
    """
    import subprocess  # not at the top, here and below: 10 ms that most commands do not need

    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(  # noqa: S603 - an absolute path, without a shell
        [os.path.basename(command[0]), *command[1:]],
        executable=command[0],
        cwd="/",
        env=None if environ is None else dict(environ),
        pass_fds=pass_fds,
        start_new_session=True,
        stdin=pipe if stdin else null,
        stdout=pipe if stdout else null,
        stderr=pipe if stderr else null,
    )


def run(command: Sequence[str], *, timeout: float | None = None, environ: Mapping[str, str] | None = None) -> Result:
    """Run `command` to its end.

    Raises OSError, and TooSlowError after `timeout` seconds; whatever is raised, it has been ended with all that it has
    started.
    """
    from subprocess import TimeoutExpired

    process = start(command, stdout=True, stderr=True, environ=environ)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException as e:
        end(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if isinstance(e, TimeoutExpired):
            raise TooSlowError from None
        raise
    return Result(process.returncode, out, err)


def wait(process: Popen[bytes], seconds: float) -> int | None:
    """Its exit status (or minus the signal); None when it has not ended within so many seconds."""
    from subprocess import TimeoutExpired

    try:
        return process.wait(max(0.0, seconds))
    except TimeoutExpired:
        return None


def end(process: Popen[bytes]) -> None:
    """Kills a program and what it has started, and waits for it, but not for ever."""
    if process.returncode is None:  # it has not been waited for, so that its number is still its own
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        wait(process, _END)


class Drain(threading.Thread):
    """Reads an output to its end, and passes each line that is not empty to `said`, which must not wait.

    `last`: the last of them. Owns the descriptor.
    """

    last = ""

    def __init__(self, fd: int, said: Callable[[str], None]):
        super().__init__(name="pyerofs-drain", daemon=True)
        self._fd = fd
        self._said = said
        self.start()

    def run(self) -> None:
        rest = b""
        try:
            while piece := os.read(self._fd, _LINE_MAX):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self._say(line)
                if len(rest) >= _LINE_MAX:
                    self._say(rest)
                    rest = b""
            self._say(rest)
        finally:
            os.close(self._fd)

    def _say(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip()
        if text:
            self.last = text
            self._said(text)
