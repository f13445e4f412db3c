"""mount(2), umount2(2) and /proc/self/mountinfo.

What is mounted is seen from this process's mount namespace. No state but libc's handle: every function may be called
from any thread. Formats: mount(2), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from typing import TYPE_CHECKING, NamedTuple, Self

from ..erofs.superblock import first_look
from ..errors import MountError, PyerofsError, UnavailableError, UsageError
from . import loop as loop_device

if TYPE_CHECKING:
    import ctypes

MS_RDONLY = 1
_CLONE_NEWNS = 0x20000  # linux/sched.h
_MS_REMOUNT, _MS_BIND = 1 << 5, 1 << 12
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
_OFFSET = "fsoffset="  # the option of EROFS for an image that begins elsewhere

# {source}, {target} and {fstype} are filled in.
_MOUNT_ERRORS = {
    errno.EBUSY: "{source} is already mounted on {target}, or in use: `umount {target}` first",
    errno.EINVAL: "the kernel refused {source}: not an {fstype} image that it can mount, or a bad option; see `dmesg`",
    errno.ENOENT: "cannot mount {source} on {target}: one of them does not exist",
    errno.ENOTDIR: "cannot mount on {target}: it is not a directory",
    errno.ENOTBLK: "cannot mount {source}: it is not a block device; `-o loop` puts one before a file",
    errno.EIO: "cannot mount {source}: it could not be read; see `dmesg`",
    errno.ENXIO: "cannot mount {source}: nothing is attached to that device",
    errno.EUCLEAN: "cannot mount {source}: the {fstype} image is corrupted; see `dmesg`",
    errno.EBADMSG: "cannot mount {source}: the checksum of its superblock is wrong; see `dmesg`",
    errno.EOPNOTSUPP: "cannot mount {source}: it uses an {fstype} feature that this kernel lacks; see `dmesg`",
}
_UMOUNT_ERRORS = {
    errno.EBUSY: "{target} is busy: `fuser -vm {target}` shows by whom; `umount -l` detaches it all the same",
    errno.EINVAL: "{target} is not a mount point",
    errno.ENOENT: "{target} does not exist",
}


class MountInfo(NamedTuple):
    id: int
    parent: int
    device: str  # major:minor
    root: str
    target: str
    options: str
    fstype: str
    source: str
    super_options: str


class MountWatch:
    """Tells by poll(2) that a mount was made or ended in this mount namespace.

    Register it with poll or epoll for MountWatch.EVENTS only: the file is always readable, so POLLIN is no news. An
    event is used up by the poll that returns it. Owns its descriptor until close().
    """

    EVENTS = select.POLLPRI | select.POLLERR

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_target(path: str) -> str:
    """Return the absolute real path of a mount point. Raises UsageError unless it is a directory."""
    try:
        target = os.path.realpath(path, strict=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"mount point {path}: {reason}") from error
    if not os.path.isdir(target):
        raise UsageError(f"mount point {path} is not a directory")
    return target


def mount(source: str, target: str, fstype: str, flags: int, data: str = "", *, shown: str = "") -> None:
    """mount(2). Raises UsageError, UnavailableError or MountError, each of one line; `shown`: the source in there."""
    if len(os.fsencode(data)) >= 4096:
        raise UsageError("the options for the kernel are longer than 4095 bytes")
    try:
        _mount(source, target, fstype, flags, data)
    except OSError as error:
        raise _explain_mount(error, shown or source, target, fstype) from error


def mount_local(image: str, target: str, flags: int, data: str = "", *, loop: bool = False) -> str:
    """Mount the EROFS image in a file or block device; returns what carries it: "device", "file" or "loop".

    A regular file is given to the kernel as it is, and through a loop device where the kernel cannot do that (before
    6.12, or a filesystem that it cannot read from inside) or with `loop`. Errors as mount(), and ImageError for what
    is no EROFS image.
    """
    image = os.path.abspath(image)
    try:
        mode = os.stat(image).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            hint = ""
            if os.path.isfile(os.path.join(image, "oci-layout")):
                hint = f": it is an OCI layout directory, which is written oci:{image}"
            elif stat.S_ISDIR(mode):
                hint = f": it is a directory, of which `pyerofs build {image} DEST` makes an image"
            raise UsageError(f"cannot mount {image}{hint or ': it is neither a regular file nor a block device'}")
        if not any(option.startswith(_OFFSET) for option in data.split(",")):
            with open(image, "rb") as file:
                first_look(file, image)
    except OSError as error:
        raise UsageError(f"cannot use {image}: {error.strerror}") from error
    if stat.S_ISBLK(mode):
        mount(image, target, "erofs", flags, data)
        return "device"
    if not loop:
        try:
            _mount(image, target, "erofs", flags, data)
            return "file"
        except OSError as error:
            # EINVAL is a bad image or a filesystem without what EROFS needs: the loop device tells them apart.
            if error.errno not in (errno.ENOTBLK, errno.EINVAL):
                raise _explain_mount(error, image, target, "erofs") from error
    device, fd = loop_device.attach(image)
    try:
        _mount(device, target, "erofs", flags, data)
    except OSError as error:
        raise _explain_mount(error, image, target, "erofs") from error
    finally:
        os.close(fd)
    return "loop"


def enter_namespace(what: str) -> None:
    """Enter a mount namespace: a process's by its number, or a file of it. Raises UsageError. For a single thread."""
    path = f"/proc/{what}/ns/mnt" if what.isdecimal() else what
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            check(libc().setns(fd, _CLONE_NEWNS))
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"cannot enter the mount namespace {what}: {error.strerror}") from None


def remount_flags(target: str, flags: int) -> None:
    """Give the mount at `target` these flags. Raises UsageError, MountError."""
    try:
        _mount("none", target, "none", flags | _MS_REMOUNT | _MS_BIND, "")
    except OSError as error:
        if error.errno == errno.EPERM:
            raise _no_privilege(f"cannot remount {target}") from error
        raise MountError(f"cannot remount {target}: {error.strerror}") from error


def umount(target: str, flags: int = UMOUNT_NOFOLLOW) -> None:
    """umount2(2); `flags` of MNT_DETACH and UMOUNT_NOFOLLOW. Raises UsageError or MountError, each of one line."""
    try:
        check(libc().umount2(os.fsencode(target), flags))
    except OSError as error:
        if error.errno == errno.EPERM:
            raise _no_privilege(f"cannot unmount {target}") from error
        text = _UMOUNT_ERRORS.get(error.errno or 0, "cannot unmount {target}: " + str(error.strerror))
        raise MountError(text.format(target=target)) from error


def mountinfo() -> list[MountInfo]:
    """Every mount of this mount namespace, below this process's root."""
    with open("/proc/self/mountinfo", "rb") as f:
        return parse_mountinfo(f.read())


def parse_mountinfo(data: bytes) -> list[MountInfo]:
    """Parse the bytes of a mountinfo file; malformed lines are left out."""
    mounts = []
    for line in data.split(b"\n"):
        mount_fields, separator, fs_fields = line.partition(b" - ")
        left, right = mount_fields.split(b" "), fs_fields.split(b" ")
        if not separator or len(left) < 6 or len(right) < 3 or not (left[0].isdigit() and left[1].isdigit()):
            continue
        device, root, target, options = map(_unescape, left[2:6])
        fstype, source, super_options = map(_unescape, right[:3])
        mounts.append(
            MountInfo(int(left[0]), int(left[1]), device, root, target, options, fstype, source, super_options)
        )
    return mounts


def find(target: str) -> MountInfo | None:
    """Return the top-most mount at `target` (a real path), or None."""
    return topmost(mountinfo(), target)


def topmost(mounts: list[MountInfo], target: str) -> MountInfo | None:
    """Of `mounts`, the one at `target` that no other at `target` lies upon."""
    here = [mount for mount in mounts if mount.target == target]
    covered = {mount.parent for mount in here if mount.parent != mount.id}
    return next((mount for mount in here if mount.id not in covered), None)


def is_mounted_device(device: str) -> bool:
    """Whether the device `major:minor` is mounted anywhere in this mount namespace."""
    return any(mount.device == device for mount in mountinfo())


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-3][0-7]{2})", lambda octal: bytes([int(octal[1], 8)]), field))


def libc() -> ctypes.CDLL:
    """For calls that Python has no function for; to be put into check()."""
    import ctypes  # not at the top: 10 ms that only a mount needs

    return ctypes.CDLL(None, use_errno=True)


def check(result: int) -> int:
    """Return what a function of libc() has returned. Raises OSError."""
    import ctypes

    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    import ctypes

    texts = [os.fsencode(text) for text in (source, target, fstype)]
    check(libc().mount(*texts, ctypes.c_ulong(flags), os.fsencode(data)))


def _explain_mount(error: OSError, source: str, target: str, fstype: str) -> PyerofsError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return _no_privilege(f"cannot mount {source} on {target}")
    if error.errno == errno.ENODEV:
        return UnavailableError(f"this kernel has no {fstype} filesystem: try `modprobe {fstype}`")
    text = _MOUNT_ERRORS.get(error.errno or 0, "cannot mount {source} on {target}: " + str(error.strerror))
    return MountError(text.format(source=source, target=target, fstype=fstype))


def _no_privilege(what: str) -> UsageError:
    if os.geteuid() != 0:
        return UsageError(f"{what}: only root may; try sudo")
    return UsageError(f"{what}: not permitted; this container or user namespace lacks CAP_SYS_ADMIN")
