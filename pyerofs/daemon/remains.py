"""What the processes of a mount leave behind when they are killed.

A record, a socket, a directory, a mount by nbdfuse and nbdfuse itself. Each is looked for where it is (in the directory
of the records, in mountinfo, among the processes), since any of the others may be missing; its name has the id of the
mount, and that the number of its daemon.

Of this mount namespace. Needs root. No state: every function may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import time
from typing import TYPE_CHECKING

from ..errors import MountError
from ..kernel.mountpoint import MNT_DETACH, UMOUNT_NOFOLLOW, mountinfo, umount
from . import record as records
from .record import Record, boot_id, read, read_all, start_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..kernel.mountpoint import MountInfo

_NAME = re.compile(r"(pyerofs-([0-9]+)-[0-9a-f]+)(?:\.[0-9]+)?(?:\.json(?:\.new|\.[0-9a-f]{12})?|\.sock|\.d)?")
_GONE = 5.0  # seconds for nbdfuse to go once it has been killed


def owner_of(path: str) -> str:
    """Return the id of the mount that a path among the records, or the source of a stack, belongs to; "" for none."""
    inside = path.removeprefix(records.DIRECTORY + "/")
    found = _NAME.fullmatch(inside.partition("/")[0])
    return found[1] if found and (inside != path or path == found[1]) else ""


def is_ours(mount: MountInfo) -> bool:
    """Whether a mount, or what it is mounted from, was made by a daemon of ours, also where no record is left of that.

    A stack that has another name than its id cannot be told from others' overlays.
    """
    if owner_of(mount.source) or owner_of(mount.target):
        return True
    return mount.fstype == "erofs" and not mount.source.startswith("/")  # named_source.py has made such a source


def is_mounted(record: Record, mounts: Sequence[MountInfo] | None = None) -> bool:
    """Whether what it tells of is still mounted in this mount namespace, whether it can be read or not."""
    return any(record.owns(mount) for mount in (mountinfo() if mounts is None else mounts))


def standing() -> list[Record]:
    """Return the records of all mounts that are there.

    Those with a living daemon or supervisor, and the dead ones that are still mounted, or wait for another daemon.
    """
    mounts = mountinfo()
    return [
        record
        for record in read_all(dead=True)
        if record.alive()
        or record.supervised()
        or (record.boot == boot_id() and (record.attached() or is_mounted(record, mounts)))
    ]


def lives(identifier: str) -> bool:
    """Whether a mount has a daemon, or one that is only setting it up, or a supervisor that will tidy up after it."""
    record = read(identifier)
    if record is not None and record.boot == boot_id() and (record.alive() or record.supervised()):
        return True
    found = _NAME.fullmatch(identifier)
    if found and start_of(int(found[2])) and b"pyerofs.daemon.worker" in _arguments(int(found[2])):
        return True
    # Its numbers may be those of another namespace: a process that listens is alive.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(os.path.join(records.DIRECTORY, f"{identifier}.sock"))
        except BlockingIOError:
            return True  # it has much to do
        except OSError:
            return False
    return True


def sweep() -> None:
    """Remove what will not be needed again.

    That is what belongs to earlier boots, to mounts that were never made, and to those that ended while none of their
    processes was there to see it. What is still mounted, dead or not, stays.
    """
    mounts = mountinfo()
    mounted = {owner_of(mount.source) for mount in mounts}
    mounted |= {record.id for record in read_all(dead=True) if record.boot == boot_id() and is_mounted(record, mounts)}
    found = {owner_of(path) for path in (*_files(), *(mount.target for mount in mounts))}
    found |= {identifier for _, identifier in _processes()}
    for identifier in found - mounted - {""}:
        if lives(identifier):
            continue
        record = read(identifier)
        if record is None:
            if os.path.exists(os.path.join(records.DIRECTORY, f"{identifier}.json")):
                continue  # of another version, which knows what it says
            if _in_use(identifier, mounts):
                continue
        elif record.boot == boot_id() and (record.attached() or is_mounted(record, mounts)):
            continue
        clear(identifier)


def _in_use(identifier: str, mounts: Sequence[MountInfo]) -> bool:
    """Whether something is still mounted from what nbdfuse shows; what is not in use is unmounted."""
    for mount in mounts:
        if mount.target.startswith(records.DIRECTORY + "/") and owner_of(mount.target) == identifier:
            try:
                umount(mount.target)
            except MountError:
                return True
    return False


def clear(identifier: str) -> None:
    """Remove all that belongs to the mount, whatever still uses it, and return when it has gone."""
    pidfds = []
    for pid, owner in _processes():
        if owner == identifier:
            with contextlib.suppress(OSError):  # it has ended
                pidfds.append(os.pidfd_open(pid))
    try:
        for fd in pidfds:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        for mount in reversed(mountinfo()):
            if mount.target.startswith(records.DIRECTORY + "/") and owner_of(mount.target) == identifier:
                with contextlib.suppress(MountError):  # it has gone by itself
                    umount(mount.target, MNT_DETACH | UMOUNT_NOFOLLOW)
        _await(pidfds)
    finally:
        for fd in pidfds:
            os.close(fd)
    for path in _files():
        if owner_of(path) == identifier:
            with contextlib.suppress(OSError):
                (os.rmdir if os.path.isdir(path) else os.unlink)(path)


def _files() -> list[str]:
    try:
        return [os.path.join(records.DIRECTORY, name) for name in os.listdir(records.DIRECTORY)]
    except OSError:
        return []


def _processes() -> Iterator[tuple[int, str]]:
    """Those of nbdfuse that show something of ours, each with the id of its mount.

    A container's processes are seen from outside, with paths in a directory of their own that has the same name: what
    they show is not ours to judge.
    """
    try:
        ours = os.stat(records.DIRECTORY)
    except OSError:
        return
    for name in os.listdir("/proc"):
        if name.isdecimal():
            arguments = _arguments(int(name))
            if arguments and os.path.basename(arguments[0]) == b"nbdfuse":
                prefix = os.fsencode(records.DIRECTORY) + b"/"
                for argument in arguments[1:]:
                    if argument.startswith(prefix) and (identifier := owner_of(os.fsdecode(argument))):
                        with contextlib.suppress(OSError):  # it has ended
                            if os.path.samestat(ours, os.stat(f"/proc/{name}/root{records.DIRECTORY}")):
                                yield int(name), identifier


def _arguments(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().split(b"\0")
    except OSError:
        return []


def _await(pidfds: Sequence[int]) -> None:
    deadline = time.monotonic() + _GONE
    for fd in pidfds:
        select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
