"""The mounts of lazy snapshots: made at their first use, one at a time for each, and ended when nobody needs them.

What is mounted is asked of the kernel and of the mounts' records, never remembered: workers live on without us.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from ..daemon.record import Record, boot_id, read, read_all
from ..errors import PyerofsError, unexpected
from ..grpc.status import Code, RpcError
from ..kernel import mountpoint
from ..mounting.mount import mount, unmount
from ..mounting.reattach import reattach
from ..mounting.stat import query
from .state import Snapshot, State


class _Attempt:
    """A mount that is being made."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: PyerofsError | None = None


class Chains:
    """`directory` has one directory for each snapshot, by its number; `options`: the -o strings of every mount.

    Any thread.
    """

    def __init__(self, directory: str, state: State, options: Sequence[str], log: Callable[[str], None]) -> None:
        self._directory = directory
        self._state = state
        self._options = list(options)
        self._log = log
        self._lock = threading.Lock()
        self._attempts: dict[int, _Attempt] = {}
        self._locks: dict[int, threading.Lock] = {}  # held by whoever changes what is mounted for a snapshot
        self._idle: dict[int, float] = {}  # since when nobody has needed a mount
        self._known: dict[str, tuple[int, str]] = {}  # by target, where to look first: a mount's number, its record

    def path(self, number: int) -> str:
        """Return where a snapshot's files are."""
        return os.path.join(self._directory, str(number), "fs")

    def begin(self, snapshot: Snapshot) -> None:
        """Have a lazy snapshot mounted; nobody waits for it."""
        self._attempt(snapshot)

    def ensure(self, snapshot: Snapshot, patience: float) -> str:
        """Return where a lazy snapshot is mounted, after `patience` seconds at most.

        Raises RpcError; it may be mounted later all the same.
        """
        path = self.path(snapshot.id)
        if self._is_well(path):
            return path
        attempt = self._attempt(snapshot)
        if not attempt.done.wait(patience):
            raise RpcError(Code.UNAVAILABLE, f"{snapshot.source} is not mounted yet after {patience:g} s: try again")
        if attempt.error:
            raise RpcError(Code.UNAVAILABLE, f"cannot mount {snapshot.source}: {attempt.error}")
        return path

    def _attempt(self, snapshot: Snapshot) -> _Attempt:
        """Return the attempt that is under way, or a new one."""
        with self._lock:
            attempt = self._attempts.get(snapshot.id)
            if attempt is None:
                attempt = self._attempts[snapshot.id] = _Attempt()
                threading.Thread(target=self._run, args=(snapshot, attempt), name="pyerofs-chain", daemon=True).start()
        return attempt

    def _run(self, snapshot: Snapshot, attempt: _Attempt) -> None:
        try:
            with self._lock_of(snapshot.id):
                self._mount(snapshot)
        except Exception as error:
            attempt.error = unexpected(error)
            self._log(f"{snapshot.source}: {attempt.error}")
        finally:
            with self._lock:
                del self._attempts[snapshot.id]
            attempt.done.set()

    def _mount(self, snapshot: Snapshot) -> None:
        path = self.path(snapshot.id)
        if self._is_well(path):
            return
        if self._state.by_id(snapshot.id) is None:
            raise RpcError(Code.NOT_FOUND, f"snapshot {snapshot.name} has been removed")
        while mountpoint.find(path):
            self._log(f"{path} is dead, and mounted again")
            mountpoint.umount(path, mountpoint.MNT_DETACH | mountpoint.UMOUNT_NOFOLLOW)
        os.makedirs(path, mode=0o755, exist_ok=True)
        options = ["ro", *filter(None, [snapshot.options]), *self._options]
        if snapshot.layers:
            options.append(f"oci.layers={snapshot.layers}")
        began = time.monotonic()
        mount(snapshot.source, path, options, report=self._log)
        self._log(f"{snapshot.source}: mounted in {time.monotonic() - began:.2f} s at {path}")

    def _lock_of(self, number: int) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(number, threading.Lock())

    def _is_well(self, path: str) -> bool:
        """Whether it is mounted, and there is somebody who serves it, or will again."""
        found = mountpoint.find(path)
        if found is None:
            return False
        record = self._record_of(found)
        if record is None:
            return False
        if record.how == "netlink":
            return record.alive() or record.supervised() or self._revive(record)
        return record.alive() and not query(record).get("dead")

    def _revive(self, record: Record) -> bool:
        """Give a mount whose worker and supervisor have both died a new worker, if it can have one."""
        if not record.attached():
            return False
        try:
            reattach(record.id, report=self._log)
        except PyerofsError as error:
            self._log(f"{record.target}: {error}")
            return False
        self._log(f"{record.target}: has a new worker")
        return True

    # The end of a mount

    def drop(self, number: int) -> None:
        """Unmount what is mounted for a snapshot that is not there any more. Raises PyerofsError."""
        with self._lock_of(number):
            path = self.path(number)
            while mountpoint.find(path):
                unmount(path, lazy=True)
        with self._lock:
            self._locks.pop(number, None)
            self._known.pop(self.path(number), None)
            self._idle.pop(number, None)

    def look_after(self, idle: float) -> None:
        """Unmount what nobody has needed for `idle` seconds, and revive what containers need.

        To be called now and then.
        """
        needed = self._state.in_use()
        mounted = {mount.target for mount in mountpoint.mountinfo()}
        now = time.monotonic()
        for snapshot in self._state.all():
            path = self.path(snapshot.id)
            if not snapshot.lazy or path not in mounted or snapshot.id in self._attempts:
                continue
            if snapshot.id in needed:
                self._idle.pop(snapshot.id, None)
                if not self._is_well(path):
                    self.begin(snapshot)
            elif now - self._idle.setdefault(snapshot.id, now) >= idle:
                self._unmount_idle(snapshot)

    def _unmount_idle(self, snapshot: Snapshot) -> None:
        with self._lock_of(snapshot.id):
            if snapshot.id in self._state.in_use():  # whoever comes now waits for this lock
                return
            try:
                unmount(self.path(snapshot.id))
            except PyerofsError as error:
                self._log(f"{snapshot.source}: {error}")
                return
            finally:
                self._idle.pop(snapshot.id, None)
        self._log(f"{snapshot.source}: unmounted, since no container has needed it")

    def record(self, number: int) -> Record | None:
        """Return the record of a snapshot's mount; None where it is not mounted."""
        found = mountpoint.find(self.path(number))
        return self._record_of(found) if found else None

    def _record_of(self, found: mountpoint.MountInfo) -> Record | None:
        mount, identifier = self._known.get(found.target, (0, ""))
        record = read(identifier) if mount == found.id else None
        if record is None or not record.owns(found):
            boot = boot_id()
            record = next((each for each in read_all(dead=True) if each.boot == boot and each.owns(found)), None)
        if record is None:
            self._known.pop(found.target, None)
        else:
            self._known[found.target] = (found.id, record.id)
        return record
