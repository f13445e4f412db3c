"""Whether a mount has users left: a private mount namespace ends with its last process, and its mounts with it.

But the daemon of such a mount is a process of the namespace as well, and would keep both for ever. So it looks, now and
then, whether it and its like are the last.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import NamedTuple

from ..kernel.mountpoint import parse_mountinfo

LOOK = 5.0  # seconds between two looks
_OURS = (b"pyerofs.daemon.worker", b"pyerofs.daemon.supervisor")
_SAMPLE = 3  # processes of a namespace whose view of it is asked: one in a chroot does not see all of it


class _Process(NamedTuple):
    pid: int
    namespace: str


def is_private() -> bool:
    """Whether this process's mount namespace may end before the machine, or the container, does."""
    try:
        return os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt")
    except OSError:
        return False  # not known: then nothing ends for it


class Tenancy:
    """Of the filesystem with the number `device` (major:minor). For one thread."""

    def __init__(self, device: str):
        self._device = device
        self._own = os.readlink("/proc/self/ns/mnt")
        self._witness = 0  # the process by which we knew, last time, that we are not alone

    def ended(self) -> bool:
        """Whether only our daemons see the filesystem or can come to see it. False where that is not known."""
        if self._witness and _namespace(self._witness) == self._own:
            return False
        self._witness = 0
        try:
            processes = _processes()
            using = self._namespaces(processes)
            for process in processes:
                if process.namespace in using and not _is_ours(process.pid):
                    self._witness = process.pid if process.namespace == self._own else 0
                    return False
            return not _held(using, processes)
        except PermissionError:
            return False

    def _namespaces(self, processes: list[_Process]) -> set[str]:
        """Those in which the filesystem is mounted."""
        members: dict[str, list[int]] = {}
        for process in processes:
            members.setdefault(process.namespace, []).append(process.pid)
        using = {self._own}
        for namespace, pids in members.items():
            if any(self._device in _mounted(pid) for pid in pids[:_SAMPLE]):
                using.add(namespace)
        return using


def _processes() -> list[_Process]:
    names = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [_Process(pid, namespace) for pid in names if (namespace := _namespace(pid))]


def _namespace(pid: int) -> str:
    """ "" for a process that has ended. Raises PermissionError."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_ours(pid: int) -> bool:
    """Whether it is there for mounts only: a daemon, a supervisor, or nbdfuse for one."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            words = f.read().split(b"\0")
    except OSError:
        return True  # it has ended
    if any(pair[0] == b"-m" and pair[1] in _OURS for pair in pairwise(words)):
        return True
    return os.path.basename(words[0]) == b"nbdfuse" and any(b"/pyerofs-" in word for word in words)


def _mounted(pid: int) -> set[str]:
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as f:
            return {mount.device for mount in parse_mountinfo(f.read())}
    except (FileNotFoundError, ProcessLookupError, OSError):
        return set()


def _held(namespaces: set[str], processes: list[_Process]) -> bool:
    """Tell whether something keeps one of them without being in it.

    By a mount of it, as `unshare --mount=FILE` makes, or by an open file.
    """
    seen = set()
    for process in processes:
        if process.namespace not in seen:
            seen.add(process.namespace)
            try:
                with open(f"/proc/{process.pid}/mountinfo", "rb") as f:
                    mounts = parse_mountinfo(f.read())
            except OSError:
                continue
            if any(mount.fstype == "nsfs" and mount.root in namespaces for mount in mounts):
                return True
        try:
            names = os.listdir(f"/proc/{process.pid}/fd")
        except (FileNotFoundError, ProcessLookupError):
            continue
        for name in names:
            try:
                if os.readlink(f"/proc/{process.pid}/fd/{name}") in namespaces:
                    return True
            except OSError:
                continue
    return False
