"""NBD devices as /sys/block and /dev show them: names, sizes, who is in, queue settings, and what an errno means.

Nothing here opens a device, since the first open reads the partition table and so waits for the server. No state:
every function may be called from any thread. Facts: drivers/block/nbd.c, Documentation/ABI/stable/sysfs-block.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from ..errors import MountError, PyerofsError, UnavailableError, UsageError

HELP = "load the nbd module (`modprobe nbd`), or use -t erofs.fuse"

# Milliseconds for queue/io_timeout with one socket: a read that was in flight when its server died goes on after a
# reconnect only when this timer fires; it only looks, as long as the socket lives and NBD's own timeout is 0.
IO_TIMEOUT = 1000

SYS_BLOCK = "/sys/block"


def node(index: int) -> str:
    """Return the device's directory in sysfs."""
    return os.path.join(SYS_BLOCK, f"nbd{index}")


def attribute(directory: str, name: str) -> str:
    """Return an attribute of the device, of any kind, that has this directory in sysfs. Raises OSError."""
    with open(os.path.join(directory, name), encoding="utf-8") as f:
        return f.read().rstrip("\n")


def index_of(device: str | int) -> int:
    """N of /dev/nbdN (or a link to it, or plain N); UsageError for any other name."""
    if isinstance(device, int):
        return device
    for name in (device, os.path.realpath(device)):
        if match := re.fullmatch(r"(?:(?:/dev/)?nbd)?(\d{1,6})", name, re.ASCII):
            return int(match[1])
    raise UsageError(f"{device} is not the name of an NBD device (/dev/nbd0, ...)")


def backend_of(device: str | int) -> str | None:
    """Return the identifier that the device was attached with; None where it has none or is not attached."""
    try:
        return attribute(node(index_of(device)), "backend")
    except OSError:
        return None


def indices() -> list[int]:
    """Every device of this kernel, in order; UnavailableError when there is none."""
    try:
        names = [name for name in os.listdir(SYS_BLOCK) if name.startswith("nbd")]
    except FileNotFoundError:
        names = []
    if not names:
        raise UnavailableError(f"this kernel has no NBD devices: {HELP}")
    return sorted(int(name[3:]) for name in names if name[3:].isdigit())


def size_of(index: int) -> int:
    """Return the device's size in bytes; 0 where there is no such device."""
    try:
        return int(attribute(node(index), "size")) * 512
    except OSError:
        return 0


def is_busy(index: int) -> bool:
    """Whether it is attached: both ways to attach show `pid`, and a device that is being prepared has a size."""
    return size_of(index) != 0 or os.path.exists(f"{node(index)}/pid")


def tune(index: int, io_timeout: int = IO_TIMEOUT) -> list[str]:
    """Make the settings of a device's queue; returns the names of those that could not be made. Raises nothing."""
    failed = []
    for name, value in (("queue/io_timeout", io_timeout),):
        try:
            with open(f"{node(index)}/{name}", "w", encoding="ascii") as f:
                f.write(str(value))
        except OSError:
            failed.append(name)
    return failed


def make_node(index: int) -> None:
    """Make /dev/nbdN where it is missing: a container's /dev is often a copy from before the module was loaded."""
    path = f"/dev/nbd{index}"
    if os.path.exists(path):
        return
    try:
        major, minor = attribute(node(index), "dev").split(":")
    except FileNotFoundError:
        raise UnavailableError(f"this kernel has no {path}: {HELP}") from None
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
    except FileExistsError:
        pass
    except OSError as error:
        raise UnavailableError(
            f"{path} is missing from /dev ({error.strerror}): `mknod {path} b {major} {minor.strip()}`"
        ) from error


def explain(error: OSError, what: str) -> PyerofsError:
    """Return the user's error for an errno of open, ioctl or netlink on `what`."""
    if error.errno in (errno.EPERM, errno.EACCES):
        if os.geteuid() != 0:
            return UsageError("NBD devices are for root only: try sudo")
        return UsageError(f"{what}: not permitted; this container lacks CAP_SYS_ADMIN or access to the device")
    if error.errno == errno.EBUSY:
        return MountError(f"{what} is in use: name another device, or none to get a free one")
    if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.ENODEV, errno.ENXIO):
        return UnavailableError(f"cannot get an NBD device: {error.strerror}; see `dmesg`")
    return MountError(f"the kernel refused {what}: {error.strerror}; see `dmesg`")
