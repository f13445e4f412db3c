"""`pyerofs mount`, `umount`, `reattach` and `disconnect`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..config.option_text import split
from ..errors import MountError, UsageError
from .terminal import show

if TYPE_CHECKING:
    import argparse

    from .commands import Commands, Say


def register(commands: Commands) -> None:
    """Add these commands."""
    p = commands.add(
        "mount",
        "mount the EROFS layers of an image, an image file or a block device",
        "  pyerofs mount quay.io/org/app:1.0 /mnt     all EROFS layers, stacked\n"
        "  pyerofs mount -t erofs.nbd -o oci=0,oci.platform=linux/amd64 quay.io/org/app:1.0 /mnt\n"
        "  pyerofs mount -o oci.upperdir=/var/up,oci.workdir=/var/work quay.io/org/app:1.0 /mnt     writable\n"
        "  pyerofs mount app.erofs /mnt               a local image\n"
        "  pyerofs mount oci:images:app /mnt          an image in an OCI layout directory\n"
        "  pyerofs mount oci-archive:app.tar /mnt     an image in an archive; also docker-archive:FILE[:NAME]\n"
        "  pyerofs mount -o remount,oci.fill=idle /mnt     change oci.fill, oci.fill_rate, timeouts\n"
        "  pyerofs mount -u /mnt                      unmount",
        _mount,
    )
    p.add_argument(
        "-t", "--types", default="erofs", metavar="TYPE",
        help="erofs (chooses), erofs.oci (the same, an image for sure), erofs.nbd, erofs.local or erofs.fuse",
    )  # fmt: skip
    p.add_argument("--over", action="store_true", help="mount on top of another image that is mounted at the target")
    p.add_argument("-u", "--unmount", action="store_true", help="unmount the target")
    p.add_argument("--reattach", action="store_true", help="replace the daemon of the mount at the target")
    p.add_argument("-r", "--read-only", action="store_true", help="same as -o ro")
    p.add_argument("-d", "--debug", type=int, choices=range(10), metavar="0..9", help="verbosity; 9 also traces HTTP")
    p.add_argument(
        "source", metavar="SOURCE", nargs="?", help="an image's reference, oci:DIR[:NAME], an archive, file or device"
    )
    p.add_argument("target", metavar="TARGET", nargs="?", help="the directory to mount at")

    p = commands.add("umount", "unmount", "  pyerofs umount /mnt", _umount, options=False)
    p.add_argument("-l", "--lazy", action="store_true", help="detach now, clean up once it is no longer in use")
    p.add_argument("target", metavar="TARGET")

    p = commands.add(
        "reattach",
        "replace a mount's daemon by one of this version, while reads go on",
        "  pyerofs reattach /mnt\n"
        "  pyerofs reattach --all                     after an upgrade, or when daemons were killed\n"
        "  pyerofs mount --reattach /dev/nbd0",
        _reattach,
    )
    p.add_argument("-a", "--all", action="store_true", help="every mount; also remove what dead mounts have left")
    p.add_argument("target", metavar="TARGET", nargs="?", help="the mount point or the device")

    p = commands.add(
        "disconnect",
        "disconnect a device by force: waiting reads fail, its mounts are detached",
        "  pyerofs disconnect /dev/nbd0",
        _disconnect,
        options=False,
    )
    p.add_argument("device", metavar="DEVICE", help="the device, or a mount point of it")


def _mount(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..mounting.mount import mount, unmount

    if arguments.source is None:
        raise UsageError("mount needs a SOURCE and a TARGET (see `pyerofs mount --help`)")
    if arguments.unmount:
        unmount(arguments.target or arguments.source)
        return
    if arguments.reattach:
        from ..mounting.reattach import reattach

        reattach(arguments.target or arguments.source, arguments.options, report=report)
        return
    if any(item == "remount" for text in arguments.options for item in split(text)):
        from ..mounting.remount import remount

        remount(arguments.target or arguments.source, arguments.options, report=report)
        return
    if arguments.target is None:
        raise UsageError("mount needs a SOURCE and a TARGET (see `pyerofs mount --help`)")
    verbosity = arguments.verbose if arguments.debug is None else (2 if arguments.debug >= 7 else arguments.debug // 3)
    mount(
        arguments.source,
        arguments.target,
        [*arguments.options, "ro"] if arguments.read_only else arguments.options,
        fstype=arguments.types,
        over=arguments.over,
        verbosity=verbosity,
        report=report,
        watch=show if not arguments.quiet and sys.stderr.isatty() else None,
    )
    from .notify import notify

    notify("READY=1")


def _umount(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..mounting.mount import unmount

    unmount(arguments.target, lazy=arguments.lazy)


def _reattach(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..mounting.reattach import reattach, reattach_all
    from .notify import notify

    if arguments.all == (arguments.target is not None):
        raise UsageError("reattach needs a TARGET, or --all (see `pyerofs reattach --help`)")
    if not arguments.all:
        reattach(arguments.target, arguments.options, report=report)
    elif failed := reattach_all(report=report):
        raise MountError(f"{failed} of the mounts could not be given a new daemon")
    notify("READY=1")


def _disconnect(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..mounting.reattach import disconnect

    disconnect(arguments.device)
