"""Traces: read from files, asked of mounts, or made by running a program in an image."""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from typing import TYPE_CHECKING

from .. import program
from ..daemon.control import ask
from ..erofs.trace import TRACE_MAX, Trace, merge
from ..errors import ImageError, MountError, UnavailableError, UsageError
from ..files import regular

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..daemon.record import Record

RUN_MAX = 60.0  # seconds for a program
ANSWER = 60.0  # seconds for a daemon to look through its image
# In namespaces of its own, with what programs expect to find; the image itself stays as it is.
_SCRIPT = """
cd "$0" || exit 126
[ -d proc ] && mount -t proc proc proc
[ -d dev ] && mount --rbind /dev dev
for each in tmp run var/tmp; do [ -d "$each" ] && [ ! -L "$each" ] && mount -t tmpfs tmpfs "$each"; done
exec chroot . "$@"
"""


def read_trace(path: str) -> Trace:
    """Read the trace in a file. Raises UsageError, ImageError."""
    try:
        with open(path, "rb", opener=regular) as file:
            data = file.read(TRACE_MAX + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        return Trace.from_bytes(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def ask_trace(record: Record) -> Trace:
    """Return what has been read of a mount so far. Raises MountError."""
    text = ask(record.control, "trace", ANSWER).values.get("trace")
    try:
        return Trace.from_bytes(str(text).encode())
    except ImageError as error:
        raise MountError(f"{record.target}: {error}") from None


def digest_of(trace: Trace) -> str:
    """Return what tells a trace from those by which data are arranged otherwise; its times do not count."""
    hasher = hashlib.sha256()
    for path, reads in trace.by_file().items():
        hasher.update(b"%d %b %d\n" % (len(path), path, len(reads)))
        for read in sorted(reads):
            hasher.update(b"%d %d\n" % read)
    return f"sha256:{hasher.hexdigest()}"


def read_traces(
    paths: Sequence[str], commands: Sequence[str], source: str, options: Sequence[str], report: Callable[[str], None]
) -> Trace:
    """Return one trace of those in the files, and of the commands when they are run in the image `source`.

    Raises PyerofsError.
    """
    traces = [read_trace(path) for path in paths]
    traces += [run_traced(source, options, command, report) for command in commands]
    found = merge(traces)
    if not any(read.file >= 0 for read in found.reads):
        raise ImageError("the trace names no file, so that nothing can be arranged by it")
    return found


def run_traced(source: str, options: Sequence[str], command: str, report: Callable[[str], None]) -> Trace:
    """Run a command in a mount of the image, as root, in namespaces of its own, and return what it has read.

    It is ended after RUN_MAX seconds. Raises PyerofsError; MountError also where it fails.
    """
    from .mount import unmount

    words = shlex.split(command)
    tools = [program.find(name) for name in ("unshare", "sh")]
    if not words or not all(tools):
        raise UsageError("--optimize-for needs a command, and unshare(1) to run it with")
    with tempfile.TemporaryDirectory(prefix="pyerofs-trace-") as directory:
        root, found = os.path.join(directory, "root"), os.path.join(directory, "trace")
        os.mkdir(root)
        _mount(source, root, [*options, f"oci.trace={found}", "oci.prefetch=none"], report)
        try:
            _run([str(tool) for tool in tools], root, words, report)
        finally:
            unmount(root)
        return read_trace(found)


def _mount(source: str, root: str, options: Sequence[str], report: Callable[[str], None]) -> None:
    """Mount so that only what the program reads is read, and not what lies around that in nbdfuse's file."""
    from .mount import mount

    try:
        mount(source, root, [*options, "directio"], report=report)
    except MountError:  # a kernel that does not know that, before 6.15, or a device
        mount(source, root, options, report=report)


def _run(tools: Sequence[str], root: str, words: Sequence[str], report: Callable[[str], None]) -> None:
    unshare, shell = tools
    apart = ["--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "--kill-child"]
    try:
        done = program.run([unshare, *apart, shell, "-c", _SCRIPT, root, *words], timeout=RUN_MAX)
    except program.TooSlowError:
        report(f"{words[0]}: ended after {RUN_MAX:.0f} s; what it had read by then counts")
        return
    except OSError as error:
        raise UnavailableError(f"cannot run {unshare}: {error.strerror}") from None
    if done.status:
        said = done.err.decode(errors="replace").strip().splitlines()
        raise MountError(f"{shlex.join(words)} failed in the image (status {done.status}): {said[-1] if said else ''}")
