"""Mounting and unmounting: the caller's side, where options, driver, daemon and mount(2) come together."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from typing import TYPE_CHECKING

from . import mountpoint
from .errors import MountFailure, PyerofsError, SystemFailure, UsageError
from .options import MountOptions, parse_mount_options
from .record import Record, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GONE_DEADLINE = 15.0  # seconds for a daemon to clean up after the unmount


def _ignore(_: str) -> None:
    pass


def choose_driver(source: str, options: MountOptions) -> tuple[str, str]:
    """The driver for `-t erofs`, and why. Raises UsageError for one that was named and does not fit."""
    local = mountpoint.is_local(source, options.is_oci)
    if options.driver == "local" and not local:
        raise UsageError(f"{source} is not a local file: an image is mounted with -t erofs.nbd or -t erofs.fuse")
    if options.driver != "auto":
        return options.driver, "as asked"
    if local:
        return "local", f"{source} is a local file or device"
    from . import device

    if device.load_module():
        return "nbd", "the kernel has NBD"
    return "fuse", "the kernel has no NBD"


def mount(
    source: str,
    target: str,
    options: Sequence[str] | str = (),
    *,
    fstype: str = "erofs",
    verbosity: int = 0,
    report: Callable[[str], None] = _ignore,
) -> None:
    """Mounts an EROFS image at the directory `target`; returns when it is usable.

    `source`: a reference of an image, or a path; `options`: as after -o; `report` gets a line for each warning, with
    `verbosity` 1 for what is chosen, with 2 for the conversation with the registry. Needs root. Raises PyerofsError
    (its status is mount(8)'s), and then nothing is left behind. Thread-safe.
    """
    texts = [options] if isinstance(options, str) else list(options)
    parsed = parse_mount_options(texts, fstype)
    for warning in parsed.warnings if not parsed.quiet else ():
        report(warning)
    if os.geteuid() != 0:
        raise UsageError("only root can mount; `pyerofs read`, `serve` and `inspect` work for everyone")
    target = mountpoint.check_target(target)
    driver, why = choose_driver(source, parsed)
    if verbosity >= 1:
        report(f"driver {driver}: {why}")
    if driver == "local":
        mountpoint.mount_local(source, target, parsed.flags, parsed.data, loop=parsed.loop)
        return
    if mountpoint.is_local(source, parsed.is_oci):
        source = os.path.abspath(source)
    daemon = Daemon(target)
    try:
        daemon.send(
            source=source,
            fstype=fstype,
            options=texts,
            driver=driver,
            target=target,
            verbosity=verbosity,
            directory=os.getcwd(),
            environment=dict(os.environ),
        )
        path = daemon.wait_for("mount", report)
        mountpoint.mount(str(path), target, "erofs", parsed.flags, parsed.data)
        try:
            daemon.send(mounted=True)
            daemon.wait_for("done", report)
        except BaseException:
            mountpoint.umount(target, mountpoint.MNT_DETACH | mountpoint.UMOUNT_NOFOLLOW)
            raise
    except BaseException:
        daemon.give_up()
        raise
    daemon.let_go()


class Daemon:
    """A mount's daemon as seen by the process that starts it; see worker.py for what they say to one another."""

    def __init__(self, target: str):
        self._socket, theirs = socket.socketpair()
        # A new interpreter, not a fork: the caller may have threads, and its memory more than the daemon needs.
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        environment = {**os.environ, "PYTHONPATH": package}
        os.set_inheritable(theirs.fileno(), True)
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "pyerofs.worker", str(theirs.fileno()), target],
                environment,
                setsid=True,
            )
        except OSError as e:
            self._socket.close()
            raise SystemFailure(f"cannot start the daemon: {e.strerror}") from None
        finally:
            theirs.close()
        self._file = self._socket.makefile("r", encoding="utf-8")

    def send(self, **message: object) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise self._died() from None

    def _died(self) -> SystemFailure:
        return SystemFailure("the daemon ended without a word; see what it wrote, or `journalctl -t pyerofs`")

    def wait_for(self, key: str, report: Callable[[str], None]) -> object:
        """The value of the next message with this key. Raises what the daemon says went wrong."""
        for line in self._file:
            message = json.loads(line)
            if "error" in message:
                error = PyerofsError(message["error"])
                error.status = message["status"]
                raise error
            if key in message:
                return message[key]
            for text in message.values():
                report(text)
        raise self._died()

    def give_up(self) -> None:
        """Hangs up, which makes the daemon take everything back, and waits until it has."""
        self._close()
        os.waitpid(self._pid, 0)

    def let_go(self) -> None:
        self._close()
        # It outlives a command; in a longer-lived caller it would become a zombie when the filesystem is unmounted.
        import threading

        threading.Thread(target=os.waitpid, args=(self._pid, 0), daemon=True).start()

    def _close(self) -> None:
        self._file.close()
        self._socket.close()


def unmount(target: str, *, lazy: bool = False) -> None:
    """Unmounts what is mounted at `target`, and returns when its daemon and device have gone.

    Raises UsageError, MountFailure. `lazy`: detach it even while it is busy; the rest goes when the last user has.
    """
    target = os.path.realpath(target)
    found = mountpoint.find(target)
    if found is None:
        raise UsageError(f"{target} is not a mount point")
    if found.fstype != "erofs":
        raise UsageError(f"{target} is a {found.fstype} filesystem, not EROFS: use umount")
    record = next((r for r in read_all() if r.device == found.source), None)
    daemon = _open_daemon(record)
    try:
        mountpoint.umount(target, mountpoint.UMOUNT_NOFOLLOW | (mountpoint.MNT_DETACH if lazy else 0))
        if daemon is not None and not lazy and not _still_mounted(found):
            _wait_gone(daemon, target)
    finally:
        if daemon is not None:
            os.close(daemon)


def _still_mounted(found: mountpoint.MountInfo) -> bool:
    return any(m.device == found.device and m.source == found.source for m in mountpoint.mountinfo())


def _open_daemon(record: Record | None) -> int | None:
    """A pidfd: it cannot come to mean another process."""
    if record is None:
        return None
    try:
        daemon = os.pidfd_open(record.pid)
    except OSError:
        return None
    if record.alive():
        return daemon
    os.close(daemon)
    return None


def _wait_gone(daemon: int, target: str) -> None:
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    deadline = time.monotonic() + GONE_DEADLINE
    while not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        if time.monotonic() > deadline:
            raise MountFailure(f"{target} is unmounted, but its daemon goes on: another mount namespace may use it")
