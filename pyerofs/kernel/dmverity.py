"""dm-verity devices, by veritysetup(8): every read is verified, and is an I/O error where the bytes are wrong.

A device of ours goes by itself: its removal is ordered as soon as it is there and takes place at its last close, which
is the unmount, by whomever; until then its openers hold it. So no process's death leaves it behind.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import TYPE_CHECKING

from .. import program
from ..errors import MountError, PyerofsError, UnavailableError
from .nbd import modprobe
from .nbd_node import SYS_BLOCK, attribute

if TYPE_CHECKING:
    from ..erofs.dmverity import Table

OPTION = "oci.verity=none mounts it without dm-verity"
_PROGRAM = "veritysetup"
_MODULE = "/sys/module/dm_verity"


class VerityDevice:
    """A device-mapper device of type verity.

    `path` is /dev/dm-N, which another device may get later; `name` is its own, `number` its major:minor. For one thread
    at a time.
    """

    def __init__(self, name: str, path: str, number: str, held: int = -1):
        self.name = name
        self.path = path
        self.number = number
        self._held = held

    @classmethod
    def open(cls, table: Table, below: str, name: str, timeout: float) -> VerityDevice:
        """Open a device `name` over the block device `below`, which has data and hashes; it is held until let_go().

        It may take `timeout` seconds: udev looks at new devices. Raises UnavailableError, MountError; then there is
        none.
        """
        try:
            _run(*open_arguments(table, below, name), timeout=timeout)
            found = _find(name)
            if found is None:
                raise MountError(f"{_PROGRAM} has made no device {name}; see `dmesg`")
            path, number = found
            device = cls(name, path, number, _open(path, number))
        except BaseException:
            _remove(name, timeout)
            raise
        try:
            _run("close", "--deferred", name, timeout=timeout)
        except BaseException:
            device.let_go()
            _remove(name, timeout)
            raise
        return device

    @classmethod
    def adopt(cls, name: str, path: str) -> VerityDevice:
        """One that is mounted, or has just gone."""
        return cls(name, *(_find(name) or (path, "")))

    def exists(self) -> bool:
        return has_name(self.path, self.name)

    def let_go(self) -> bool:
        """From now on others keep it, or else it goes. False: it had been let go before."""
        held, self._held = self._held, -1
        if held >= 0:
            os.close(held)
        return held >= 0

    def await_end(self, seconds: float) -> None:
        """Wait until the kernel has removed it, a moment after its last close."""
        deadline = time.monotonic() + seconds
        while self.exists() and time.monotonic() < deadline:
            time.sleep(0.005)


def check_available() -> None:
    """Raise UnavailableError where this system has no dm-verity, or no veritysetup."""
    if program.find(_PROGRAM) is None:
        raise UnavailableError(f"{_PROGRAM} is not installed: apt-get install cryptsetup-bin ({OPTION})")
    if not os.path.exists(_MODULE):
        modprobe("dm-verity")
    if not os.path.exists(_MODULE):
        raise UnavailableError(f"this kernel has no dm-verity: try `modprobe dm-verity` ({OPTION})")


def has_name(path: str, name: str) -> bool:
    """Whether /dev/dm-N is the device with this name now."""
    try:
        return attribute(_place(os.path.basename(path)), "dm/name") == name
    except OSError:
        return False


def open_arguments(table: Table, below: str, name: str) -> list[str]:
    """All that the device is made of: veritysetup itself reads nothing that the registry may have changed."""
    return [
        "open",
        "--no-superblock",
        "--format=1",
        f"--hash={table.algorithm}",
        f"--data-block-size={table.block}",
        f"--hash-block-size={table.block}",
        f"--data-blocks={table.blocks}",
        f"--hash-offset={table.start}",
        f"--salt={table.salt or '-'}",
        below,
        name,
        below,
        table.root,
    ]


def _run(*arguments: str, timeout: float) -> None:
    """Run veritysetup. Raises UnavailableError, MountError."""
    path = program.find(_PROGRAM)
    if path is None:
        raise UnavailableError(f"{_PROGRAM} is not installed: apt-get install cryptsetup-bin")
    try:
        done = program.run([path, *arguments], timeout=timeout)
    except OSError as e:
        raise UnavailableError(f"cannot start {path}: {e.strerror}") from None
    except program.TooSlowError:
        raise MountError(f"{_PROGRAM} {arguments[0]} has not ended within {timeout:g} s; see `dmesg`") from None
    if done.status:
        said = done.err.decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"it ended with status {done.status}"
        raise MountError(f"{_PROGRAM} {arguments[0]}: {why}; see `dmesg`")


def _remove(name: str, timeout: float) -> None:
    """Remove what a failure has left of it; the caller reports that failure."""
    if _find(name) is not None:
        with contextlib.suppress(PyerofsError):
            _run("close", "--deferred", name, timeout=timeout)


def _find(name: str) -> tuple[str, str] | None:
    """Path and major:minor of the device-mapper device with this name."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir(SYS_BLOCK):
            if entry.startswith("dm-"):
                with contextlib.suppress(OSError):  # it is about to go
                    if attribute(_place(entry), "dm/name") == name:
                        return f"/dev/{entry}", attribute(_place(entry), "dev")
    return None


def _place(entry: str) -> str:
    return os.path.join(SYS_BLOCK, entry)


def _open(path: str, number: str) -> int:
    """Open the device; its node is made where it is missing, since a container's /dev is often a copy.

    The one in /dev/mapper is no help: it goes when the removal is ordered.
    """
    device = os.makedev(*map(int, number.split(":")))
    try:
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o600, device)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise MountError(f"cannot open {path}: {e.strerror}") from None
    if os.fstat(fd).st_rdev != device:
        os.close(fd)
        raise MountError(f"{path} is not the device {number}, which it should be: remove it")
    return fd
