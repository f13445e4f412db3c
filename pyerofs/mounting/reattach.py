"""Taking over mounts: a new daemon for one whose daemon is dead, hangs or is older, and the end by force."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from ..config import file as config_file
from ..config.option_edits import replaced
from ..config.options import parse_mount_options
from ..context import ignore, log_of_caller
from ..daemon.control import Answer, ask
from ..daemon.launch import WorkerProcess
from ..daemon.messages import Handover, MountRequest, Resume
from ..daemon.record import Record, boot_id, read, read_all
from ..daemon.remains import sweep
from ..errors import MountError, PyerofsError, UsageError
from ..kernel import mountpoint, nbd
from ..kernel.nbd_node import backend_of
from .mount import open_processes, wait_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..config.options import Defaults

HANDOVER_PATIENCE = 10.0  # seconds for the old daemon to come to a stop
SUPERVISOR_PATIENCE = 5.0  # seconds in which a supervisor that lives may have a daemon again by itself
COME_UP = 60.0  # seconds for the new one
GONE = 5.0  # seconds for a daemon to see that its device has gone
LOOK = 0.1


def find_record(what: str) -> Record:
    """Return the record of a mount point, a device or a record's id, whether its daemon lives or not.

    Raises UsageError.
    """
    records = [r for r in read_all(dead=True) if r.boot == boot_id()]
    mounted = mountpoint.find(os.path.realpath(what))
    names = {os.path.realpath(what), what, os.path.join("/dev", what)}
    for record in records:
        if names & {record.id, *record.paths} or (mounted and record.owns(mounted)):
            return record
    raise UsageError(f"{what} is not a mount of pyerofs with a daemon (see `pyerofs list`)")


def reattach(what: str, options: Sequence[str] | str = (), *, report: Callable[[str], None] | None = None) -> None:
    """Give the mount a new daemon, of this version, while reads go on; return when it serves.

    `what`: the mount point, the device, or a record's id. `options` are added to those of the mount: what is secret of
    those is not kept once both the daemon and its supervisor are dead. Raises UsageError, MountError, UnavailableError.
    """
    report = log_of_caller(report)
    record = find_record(what)
    if record.how != "netlink":
        raise MountError(
            f"{record.target}: only a mount that was attached by netlink can be given a new daemon: "
            "unmount it and mount it again"
        )
    texts = [options] if isinstance(options, str) else list(options)
    with ExitStack() as stack:
        processes = open_processes(record, stack)
        answer = _hand_over(record)
        if answer is None:
            _end(processes)
            request = MountRequest.from_json(record.request)
            request = request.with_more(defaults=_configured(record, request, report))
            if record.secrets and not texts:
                report(f"{record.target}: its password was not kept; -o oci.password_file= gives it again")
        else:
            request = Handover.from_json(answer.values).request
            for fd in answer.fds:
                stack.callback(os.close, fd)
        now = read(record.id) or record
        if not now.attached():
            now.remove()
            devices = ", ".join(part.device for part in now.parts)
            raise MountError(f"{record.target}: {devices} has been disconnected; the record is removed")
        request = replace(request, options=replaced(request.options, texts))
        parse_mount_options(request.options, request.fstype, request.defaults)
        _start(now, request, answer, report)
        wait_gone(processes, GONE)


def _configured(record: Record, request: MountRequest, report: Callable[[str], None]) -> Defaults:
    """Return the configuration's defaults: what the record lacks, since it is secret, may still be there.

    A broken configuration is no reason to give up a mount.
    """
    try:
        return config_file.load().defaults(request.get_location())
    except UsageError as e:
        report(f"{record.target}: {e}")
        return []


def _start(record: Record, request: MountRequest, answer: Answer | None, report: Callable[[str], None]) -> None:
    daemon = WorkerProcess(record.target)
    try:
        fds, sockets = (answer.fds, Handover.from_json(answer.values).sockets) if answer else ((), {})
        resume = Resume(record, record.restarts + (answer is None), sockets)
        daemon.take_over(fds, request, resume, report, patience=COME_UP)
    except BaseException:
        daemon.kill()
        raise
    daemon.let_go()


def _hand_over(record: Record) -> Answer | None:
    """Return what the old daemon hands over before it ends; None where none answers."""
    deadline = time.monotonic() + SUPERVISOR_PATIENCE
    while True:
        now = read(record.id) or record
        try:
            if now.alive():
                return ask(now.control, "handover", HANDOVER_PATIENCE)
        except MountError:
            if now.alive():
                return None  # it hangs
        if not now.supervised() or time.monotonic() > deadline:
            return None
        time.sleep(LOOK)


def _end(processes: Sequence[int]) -> None:
    """Kill the supervisor first, so that it does not start another daemon."""
    for fd in processes:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    if not wait_gone(processes, GONE):
        raise MountError("the old daemon does not end, although it was killed: it waits for the kernel (see `dmesg`)")


def reattach_all(*, report: Callable[[str], None] = ignore) -> int:
    """Reattach every mount that can have it, and sweep what will not be reattached.

    Returns how many are dead for good, or failed.
    """
    sweep()
    failed = 0
    for record in read_all(dead=True):
        if record.how != "netlink":
            report(f"{record.target}: {_left(record)}")
            failed += not record.alive()
            continue
        try:
            reattach(record.id, report=report)
            report(f"{record.target}: has a new daemon")
        except PyerofsError as e:
            failed += 1
            report(str(e))
    return failed


def _left(record: Record) -> str:
    if record.alive():
        return f"left as it is, by {record.how or record.driver}"
    return f"its daemon has died and cannot be replaced: `pyerofs umount {record.target}`, and mount it again"


def disconnect(what: str) -> None:
    """End a mount's devices by force: waiting reads get an I/O error, mounts of them are detached, the daemon ends.

    `what`: a device, or a mount point of it. Raises UsageError, MountError, UnavailableError.
    """
    from ..kernel.dmverity import has_name  # deferred: nothing else here needs it

    record = find_record(what)
    if record.driver == "fuse":
        raise UsageError(f"{what} is not an NBD device: `pyerofs umount --lazy {record.target}`")
    with ExitStack() as stack:
        processes = open_processes(record, stack)
        for part in record.parts:
            if part.how != "netlink" or backend_of(part.device) == part.id:  # else another session may have it
                nbd.disconnect(part.device)
        # The dm-verity device's number may belong to another device by now, of any kind.
        others = {part.verity for part in record.parts if part.verity and not has_name(part.verity, part.id)}
        for mount in reversed(mountpoint.mountinfo()):
            if mount.source in record.paths - others or (not others and record.owns(mount)):
                with contextlib.suppress(MountError):  # it has gone by itself
                    mountpoint.umount(mount.target, mountpoint.MNT_DETACH | mountpoint.UMOUNT_NOFOLLOW)
        if not wait_gone(processes, GONE):
            _end(processes)
    record.remove()
