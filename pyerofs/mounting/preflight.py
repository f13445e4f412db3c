"""What a mount needs of this machine, looked at before anything is resolved or fetched."""

from __future__ import annotations

import os
import re

from .. import program
from ..errors import UnavailableError

_FUSE = "nbdfuse"
_FILE_BACKED = (6, 12)  # the first Linux that mounts EROFS from a file


def check_ready(driver: str, *, verity: bool = False) -> None:
    """Raise UnavailableError, which says what is missing, where a mount by this driver (nbd, fuse) cannot succeed.

    `verity`: a dm-verity device may lie over what the driver shows, so that the kernel mounts no file.
    """
    if not _has_erofs():
        raise UnavailableError(
            "this kernel has no EROFS, and `modprobe erofs` did not bring it; `pyerofs ls` and `cp` need no kernel"
        )
    if driver != "fuse":
        return
    release = os.uname().release
    version = tuple(map(int, re.findall(r"[0-9]+", release)[:2]))
    if version < _FILE_BACKED and not verity:
        raise UnavailableError(f"-t erofs.fuse needs Linux 6.12 or newer, and this is {release}: use -t erofs.nbd")
    if not os.path.exists("/dev/fuse"):
        raise UnavailableError("there is no /dev/fuse: `modprobe fuse`, or --device /dev/fuse for a container")
    if program.find(_FUSE) is None:
        raise UnavailableError(f"{_FUSE} is not installed: apt-get install libnbd-bin fuse3")


def _has_erofs() -> bool:
    if _is_listed():
        return True
    from ..kernel.nbd import modprobe

    modprobe("erofs")
    return _is_listed()


def _is_listed() -> bool:
    with open("/proc/filesystems", encoding="ascii") as f:
        return any(line.split()[-1:] == ["erofs"] for line in f)
