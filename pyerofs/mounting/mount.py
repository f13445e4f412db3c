"""Mounting and unmounting: the caller's side, where options, driver, daemon and mount(2) come together."""

from __future__ import annotations

import os
import select
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..config import file as config_file
from ..config.options import MountOptions, names_image, parse_mount_options
from ..context import ignore, log_of_caller
from ..daemon import launch as daemons
from ..daemon.messages import MountPlan, MountRequest
from ..daemon.record import Record, start_of
from ..daemon.remains import is_ours, owner_of, sweep
from ..errors import MountError, UsageError
from ..kernel import mountpoint
from ..kernel.named_source import mount_named
from ..oci.location import Location
from .preflight import check_ready
from .present import alone_at, is_there, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GONE_DEADLINE = 15.0  # seconds for a daemon to clean up after the unmount


def choose_driver(source: Location, options: MountOptions) -> tuple[str, str]:
    """Return the driver for `-t erofs`, and why. Raises UsageError for one that was named and does not fit."""
    if options.driver == "local" and not source.is_file:
        raise UsageError(f"{source} is not a local file: an image is mounted with -t erofs.nbd or -t erofs.fuse")
    if options.driver != "auto":
        return options.driver, "as asked"
    if source.is_file:
        return "local", f"{source} is a local file or device"
    from ..kernel import nbd

    if nbd.load_module():
        return "nbd", "the kernel has NBD"
    return "fuse", "the kernel has no NBD"


def mount(
    source: str,
    target: str,
    options: Sequence[str] | str = (),
    *,
    fstype: str = "erofs",
    over: bool = False,
    verbosity: int = 0,
    report: Callable[[str], None] | None = None,
    watch: Callable[[str], None] | None = None,
) -> None:
    """Mount EROFS at the directory `target`, and return when it is usable.

    What is mounted is all layers of an image as one, one of them, or a local image file. An image of ordinary layers is
    converted first, by this process.

    Where the same is mounted there already, this is only reported; another image is refused, unless `over` says that it
    is to lie on top.

    `source`: an image's reference, oci:DIR[:NAME], an archive (oci/location.py), or a path; `options`: as after -o;
    `report` (by default logging.getLogger("pyerofs")) gets a line for each warning, with `verbosity` 1 for what is
    chosen, with 2 for the conversation with the registry; `watch` gets how far a conversion is, each time in place of
    the lines before; without it `report` gets a line every 10 s.

    Needs root. Raises PyerofsError (its status is mount(8)'s), and then nothing is left behind. Thread-safe.
    """
    report = log_of_caller(report)
    texts = [options] if isinstance(options, str) else list(options)
    location = Location.parse(source, image=names_image(texts, fstype))
    defaults = config_file.load().defaults(location)
    parsed = parse_mount_options(texts, fstype, defaults)
    for warning in parsed.warnings if not parsed.quiet else ():
        report(warning)
    if os.geteuid() != 0:
        raise UsageError("only root can mount; `pyerofs read`, `serve` and `inspect` work for everyone")
    target = mountpoint.check_target(target)
    if parsed.upper:
        from ..kernel.overlay import Upper, check_upper

        check_upper(Upper(*parsed.upper))
    driver, why = choose_driver(location, parsed)
    if verbosity >= 1:
        report(f"driver {driver}: {why}")
    with ExitStack() as held:
        held.enter_context(alone_at(target, report))
        if not over and is_there(location, parsed, target):
            report(f"{location} is already mounted on {target}")
            return
        if driver == "local":
            flags = parsed.flags | mountpoint.MS_RDONLY
            mountpoint.mount_local(location.path, target, flags, parsed.data, loop=parsed.loop)
            return
        check_ready(driver, verity=parsed.verity != "none")
        daemon = daemons.start(target)

        def convert(task: dict[str, Any]) -> None:
            from ..images.convert_cache import convert as convert_image
            from ..images.progress import Console, Lines, Style
            from ..source.converted_cache import ConversionRequest

            say = ignore if parsed.quiet else report
            style: Style = "none" if parsed.quiet else "bar" if watch else "plain"
            shown = Lines(Console(say, watch, style, sparing=True))
            held.enter_context(convert_image(ConversionRequest.from_json(task), parsed.oci, say, shown))
            daemon.send(converted=True)

        try:
            request = MountRequest(
                source=str(location),
                location=location.as_list(),
                fstype=fstype,
                options=texts,
                defaults=defaults,
                driver=driver,
                target=target,
                verbosity=verbosity,
                directory=os.getcwd(),
                environment=dict(os.environ),
            )
            daemon.send(**request.to_json())
            plan = daemon.wait_for("mount", report, {"convert": convert})
            _mount(MountPlan.from_json(plan), target, parsed)
            try:
                daemon.send(mounted=_number_of(target))
                daemon.wait_for("done", report)
            except BaseException:
                mountpoint.umount(target, mountpoint.MNT_DETACH | mountpoint.UMOUNT_NOFOLLOW)
                raise
        except BaseException:
            if daemon.give_up():
                sweep()
            raise
    daemon.let_go()


def _mount(plan: MountPlan, target: str, options: MountOptions) -> None:
    """Mounts what the daemon has attached."""
    if not plan.directory:
        [layer] = plan.layers
        data = ",".join(filter(None, [options.data, *(f"device={path}" for path in layer.devices)]))
        mount_named(plan.source, layer.path, target, "erofs", options.flags, data)
        return
    from ..kernel.overlay import Lower, Upper, mount_stack

    stack = [
        Lower(layer.path, f"layer {layer.layer}", options.data, layer.devices, layer.names) for layer in plan.layers
    ]
    upper = Upper(*options.upper) if options.upper else None
    mount_stack(stack, plan.source, target, plan.directory, options.flags, upper)


def _number_of(target: str) -> str:
    """Return major:minor of what has just been mounted there; "?" if it has gone again already."""
    found = mountpoint.find(target)
    return found.device if found else "?"


def unmount(target: str, *, lazy: bool = False) -> None:
    """Unmounts what is mounted at `target`, and returns when its daemon and device have gone.

    Raises UsageError, MountError. `lazy`: detach it even while it is busy; the rest goes when the last user has.
    """
    target = os.path.realpath(target)
    found = mountpoint.find(target)
    if found is None:
        there = os.path.lexists(target)
        raise UsageError(f"{target} is not a mount point (`pyerofs list`)" if there else f"{target} does not exist")
    record = record_of(found)
    if found.fstype != "erofs" and not record and not owner_of(found.source):
        raise UsageError(f"{target} is a {found.fstype} filesystem, not EROFS: use umount")
    with ExitStack() as stack:
        processes = open_processes(record, stack) if record else []
        mountpoint.umount(target, mountpoint.UMOUNT_NOFOLLOW | (mountpoint.MNT_DETACH if lazy else 0))
        if not lazy and not _still_mounted(found) and not wait_gone(processes, GONE_DEADLINE):
            raise MountError(f"{target} is unmounted, but its daemon still runs: another mount namespace may use it")
    if not processes and (record or is_ours(found)):
        sweep()  # the daemon that would have done it is dead


def _still_mounted(found: mountpoint.MountInfo) -> bool:
    return any(m.device == found.device and m.source == found.source for m in mountpoint.mountinfo())


def open_processes(record: Record, stack: ExitStack) -> list[int]:
    """Return pidfds of its supervisor and its daemon, as far as they live; the stack owns them.

    They cannot come to mean other processes.
    """
    found = []
    for pid, started in ((record.supervisor, record.supervisor_started), (record.pid, record.started)):
        try:
            fd = os.pidfd_open(pid) if pid else -1
        except OSError:
            continue  # it has ended
        if fd >= 0:
            stack.callback(os.close, fd)
            if start_of(pid) == started:
                found.append(fd)
    return found


def wait_gone(processes: Sequence[int], seconds: float) -> bool:
    """Whether all of them end within so many seconds."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    for fd in processes:
        poll.register(fd, select.POLLIN)
    left = set(processes)
    while left:
        ended = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
        if not ended:
            return False
        for fd in ended:
            poll.unregister(fd)
            left.discard(fd)
    return True
