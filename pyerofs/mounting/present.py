"""What is at a mount point already: the same image, another one, or nothing that matters."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from ..config.options import parse_mount_options
from ..daemon.messages import MountRequest
from ..daemon.record import boot_id, read_all
from ..daemon.remains import is_ours
from ..errors import MountError, PyerofsError
from ..kernel import mountpoint
from ..oci.location import Location

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..config.options import MountOptions
    from ..daemon.record import Record


@contextlib.contextmanager
def alone_at(target: str, report: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process of ours mounts at this directory. Two that arrive at once mount once."""
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another process is mounting at {target}: waiting for it")
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError:
            pass  # a filesystem without locks
        yield
    finally:
        os.close(fd)


def record_of(mount: mountpoint.MountInfo) -> Record | None:
    """Return the record of what is mounted there, whether its daemon lives or not; None for what is not ours."""
    return next((record for record in read_all(dead=True) if record.boot == boot_id() and record.owns(mount)), None)


def is_there(location: Location, options: MountOptions, target: str) -> bool:
    """Whether the same is mounted at `target`. Raises MountError for another image, or one that is dead."""
    found = mountpoint.find(target)
    if found is None:
        return False
    record = record_of(found)
    if record is None:
        if not is_ours(found) and found.fstype != "erofs":
            return False  # an ordinary filesystem has the directory, as it may
        if location.is_file and location.path in (found.source, _backing_file(found.device)):
            return True
        raise MountError(_refusal(target, found.source))
    if not _is_same(record, location, options):
        raise MountError(_refusal(target, record.source))
    from .stat import query  # deferred: a first mount has nothing to ask

    if dead := query(record).get("dead"):
        raise MountError(f"{record.source} is mounted on {target}, but {dead}")
    return True


def _refusal(target: str, source: str) -> str:
    return f"{source} is mounted on {target}: `pyerofs umount {target}` first, or --over mounts on top of it"


def _is_same(record: Record, location: Location, options: MountOptions) -> bool:
    request = MountRequest.from_json(record.request)
    try:
        then = parse_mount_options(request.options, request.fstype, request.defaults)
        where = Location.from_list(request.location) if request.location else request.get_location()
    except PyerofsError:
        return False  # written by another version
    oci, before = options.oci, then.oci
    return (where, before.layer, before.blob, before.platform, then.upper) == (
        location, oci.layer, oci.blob, oci.platform, options.upper
    )  # fmt: skip


def _backing_file(number: str) -> str:
    try:
        with open(f"/sys/dev/block/{number}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as f:
            return f.read().rstrip("\n")
    except OSError:
        return ""
