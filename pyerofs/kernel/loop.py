"""A read-only loop device over an image file, for kernels that do not mount EROFS from a file.

Structures: <linux/loop.h>. Needs root. No state: every function may be called from any thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from ..errors import MountError, UnavailableError, UsageError
from ..files import regular

_LOOP_SET_FD, _LOOP_CLR_FD, _LOOP_SET_STATUS64, _LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = (
    0x4C00,
    0x4C01,
    0x4C04,
    0x4C0A,
    0x4C82,
)
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
# loop_info64: five u64 (device, inode, rdevice, offset, size limit), four u32 (number, two of encryption, flags), the
# file's name and two unused texts, two u64. loop_config: descriptor, block size, loop_info64, eight u64.
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG = struct.Struct(f"=II{_INFO.size}s8Q")
_ATTEMPTS = 64


def attach(image: str) -> tuple[str, int]:
    """Attach `image` to a free loop device; returns its path and an open descriptor of it.

    The device is read-only and clears itself at its last close, so the caller keeps the descriptor open until the
    mount is made and then closes it. UsageError, UnavailableError or MountError when there is no such device.
    """
    try:
        backing = regular(image, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"cannot open {image}: {error.strerror}") from error
    try:
        for _ in range(_ATTEMPTS):
            path = _free_device()
            device = _open(path)
            try:
                _configure(device, backing, image)
            except OSError as error:
                os.close(device)
                # Another process took the device between the question and the claim.
                if error.errno == errno.EBUSY:
                    continue
                raise MountError(f"cannot attach {image} to {path}: {error.strerror}") from error
            return path, device
    finally:
        os.close(backing)
    raise UnavailableError(f"no loop device for {image}: each one that was free was taken by another process")


def _free_device() -> str:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            return f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        finally:
            os.close(control)
    except FileNotFoundError as error:
        raise UnavailableError("this system has no loop devices (/dev/loop-control): try `modprobe loop`") from error
    except OSError as error:
        raise _refused("/dev/loop-control", error) from error


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        number = path.removeprefix("/dev/loop")
        raise UnavailableError(f"{path} is missing from /dev: try `mknod {path} b 7 {number}`") from error
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: str, error: OSError) -> UsageError | UnavailableError:
    if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
        return UsageError(f"cannot use {path}: loop devices need root")
    return UnavailableError(f"cannot use {path}: {error.strerror}")


def _configure(device: int, backing: int, image: str) -> None:
    name = os.fsencode(os.path.realpath(image))[:63]
    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    try:
        fcntl.ioctl(device, _LOOP_CONFIGURE, _CONFIG.pack(backing, 0, info, *[0] * 8))
    except OSError as error:
        # Kernels before 5.8 do not know it; they take READ_ONLY from the backing descriptor's mode.
        if error.errno not in (errno.EINVAL, errno.ENOTTY):
            raise
        fcntl.ioctl(device, _LOOP_SET_FD, backing)
        try:
            fcntl.ioctl(device, _LOOP_SET_STATUS64, info)
        except OSError:
            fcntl.ioctl(device, _LOOP_CLR_FD)
            raise
