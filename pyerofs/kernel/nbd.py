"""Kernel NBD devices: attach a socket to /dev/nbdN, by generic netlink or by the ioctls, and end that again.

Netlink is preferred: the kernel picks a free device itself, takes several sockets, remembers whose device it is
(`backend`) and lets a dead socket be replaced. The ioctls are for kernels without it.

The server must answer at the other ends of the sockets as soon as attach() has been called: the first open of the
device, by anyone, reads its partition table. Whatever can be asked of sysfs is therefore asked there.

Facts: <linux/nbd.h>, drivers/block/nbd.c. Everything needs root. Functions may be called from any thread; a device's
methods from one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import threading
import time

from ..errors import MountError, PyerofsError, UnavailableError, UsageError
from . import netlink
from .nbd_node import HELP, IO_TIMEOUT, backend_of, explain, index_of, indices, is_busy, make_node, node, size_of, tune

_SET_SOCK, _SET_BLKSIZE, _DO_IT, _CLEAR_SOCK = 0xAB00, 0xAB01, 0xAB03, 0xAB04
_SET_SIZE_BLOCKS, _DISCONNECT, _SET_TIMEOUT, _SET_FLAGS = 0xAB07, 0xAB08, 0xAB09, 0xAB0A

# Bytes. Always the smallest: it gives the most exact size, and a filesystem cannot be mounted whose blocks are smaller
# than its device's (EROFS has 512-byte blocks over tar layers). A mounted EROFS sends the same requests as with 4096.
SECTOR = 512

DEAD_TIMEOUT = 7 * 24 * 3600  # seconds
ANSWER_TIMEOUT = 130.0  # seconds
_ANSWER_TIMEOUT_MAX = 24 * 3600.0


class NBDDevice:
    """An attached device, as attach() returns it; it lives on without this object if it came by netlink.

    `index` and `path` (/dev/nbdN) name it, `how` is "netlink" or "ioctl", `size` is its size in bytes, `untuned` lists
    the QUEUE_SETTINGS that could not be made (a read-only /sys, say). With "ioctl" it lives as long as this process.
    """

    def __init__(self, index: int, size: int, identifier: str, session: _IoctlSession | None) -> None:
        self.index = index
        self.path = f"/dev/nbd{index}"
        self.size = size
        self.identifier = identifier
        self.how = "ioctl" if session else "netlink"
        self.untuned: list[str] = []
        self._session = session
        self._ended = False

    def settle(self, seconds: float = 10.0) -> None:
        """Wait until the kernel shows the device's size; MountError when it has not after so many seconds.

        Netlink commits the size before it answers, the ioctls (since 6.13) only inside NBD_DO_IT, some time later.
        """
        deadline, pause = time.monotonic() + seconds, 0.001
        while (seen := size_of(self.index)) != self.size:
            if self._session and not self._session.is_alive():
                raise self._session.error or MountError(f"{self.path}: its server went away while it was attached")
            if time.monotonic() > deadline:
                raise MountError(f"{self.path} has {seen} bytes after {seconds:g} s, not {self.size}; see `dmesg`")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def in_use(self) -> bool:
        """Whether a filesystem (or anyone else) holds the device exclusively.

        This opens the device, so it may read from the server; and if that was the last open of a device that
        disconnects on close, it is the close.
        """
        try:
            os.close(os.open(self.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            if error.errno not in (errno.ENOENT, errno.ENXIO):
                raise MountError(f"cannot open {self.path}: {error.strerror}") from error
        return False

    def set_disconnect_on_close(self, dead_timeout: int | None = None) -> bool:
        """Let the kernel disconnect the device when it is closed last, that is after the unmount.

        To be called once the mount holds the device: before that any passer-by's close would end it. `dead_timeout`
        (seconds) takes the place of what attach() was given. False with
        "ioctl", which has no such flag and keeps the device open itself: disconnect() must be called there.
        """
        if self._session:
            return False
        try:
            netlink.reconfigure(
                self.index,
                identifier=self.identifier,
                client_flags=netlink.CFLAG_DISCONNECT_ON_CLOSE,
                dead_timeout=dead_timeout,
            )
        except OSError as error:
            raise explain(error, self.path) from error
        return True

    def await_end(self, seconds: float) -> None:
        """Give a kernel that disconnects by itself time to finish.

        Asked once more in the middle of that, it complains in its log.
        """
        deadline = time.monotonic() + seconds
        while backend_of(self.index) == self.identifier and time.monotonic() < deadline:
            time.sleep(0.005)

    def disconnect(self) -> None:
        """End the session: the server is sent NBD_CMD_DISC, pending reads get EIO. Idempotent."""
        if self._ended:
            return
        self._ended = True
        if self._session:
            self._session.end()
        elif backend_of(self.index) in (self.identifier, None):  # else another session already has it
            disconnect(self.index)


def available() -> bool:
    """Whether this kernel has NBD now."""
    if os.path.exists("/sys/module/nbd"):
        return True
    try:
        return netlink.family() > 0
    except OSError:
        return False


def load_module() -> bool:
    """Whether this kernel has NBD, after having tried to load the module. Raises nothing."""
    if not available():
        modprobe("nbd")
    return available()


def modprobe(module: str) -> None:
    """Has a module of the kernel loaded, if that can be. Raises nothing."""
    from .. import program

    if path := program.find("modprobe"):
        with contextlib.suppress(OSError, program.TooSlowError):
            program.run([path, "-q", module], timeout=30)


def attach(
    sockets: list[int],
    size: int,
    server_flags: int,
    identifier: str,
    *,
    how: str = "auto",
    device: str | None = None,
    dead_timeout: int = DEAD_TIMEOUT,
    answer_timeout: float = ANSWER_TIMEOUT,
) -> NBDDevice:
    """Attach the kernel's ends of the sockets to an NBD device, `device` (/dev/nbdN) or a free one.

    The kernel takes its own references: the caller still owns the descriptors and closes them, after a success too.
    `size` is in bytes; of a size that is no multiple of 512 the rest is out of reach. `server_flags` are the
    transmission flags of the NBD specification, `identifier` is shown as /sys/block/nbdN/backend and needed for a
    reconnect, `how` is "auto", "netlink" or "ioctl" (one socket only), `dead_timeout` are the seconds that reads wait
    for a reconnect once every socket is dead (netlink only). `answer_timeout`: seconds within which the server answers
    every read; of several sockets the kernel takes one that does not for dead.

    UsageError, UnavailableError or MountError; then nothing is attached.
    """
    if size < SECTOR:
        raise MountError(f"{size} bytes are too few for a block device")
    if how not in ("auto", "netlink", "ioctl"):
        raise UsageError(f"unknown way {how!r} to attach an NBD device: auto, netlink or ioctl")
    size -= size % SECTOR
    index = None if device is None else index_of(device)
    found = None
    if how != "ioctl":
        found = _attach_netlink(sockets, size, server_flags, identifier, index, dead_timeout)
        if not found and how == "netlink":
            raise UnavailableError(f"the kernel offers no NBD over netlink here: {HELP}")
    if not found:
        found = _attach_ioctl(sockets, size, server_flags, identifier, index)
    try:
        make_node(found.index)
        several = int(min(answer_timeout, _ANSWER_TIMEOUT_MAX) * 1000)
        found.untuned = tune(found.index, IO_TIMEOUT if len(sockets) == 1 else several)
    except BaseException:
        found.disconnect()
        raise
    return found


def disconnect(device: str | int) -> None:
    """Disconnect a device by its path or index, by whatever process it was attached. Idempotent.

    UsageError for a name that is no NBD device's or without the privilege, UnavailableError, MountError.
    """
    index = index_of(device)
    path = f"/dev/nbd{index}"
    if not os.path.exists(node(index)):
        raise UsageError(f"there is no device {path}")
    try:
        try:
            netlink.disconnect(index)
        except netlink.NoFamily:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _DISCONNECT)
                fcntl.ioctl(fd, _CLEAR_SOCK)
            finally:
                os.close(fd)
    except OSError as error:
        raise explain(error, path) from error


def _attach_netlink(
    sockets: list[int], size: int, server_flags: int, identifier: str, index: int | None, dead_timeout: int
) -> NBDDevice | None:
    try:
        got = netlink.connect(
            sockets,
            size=size,
            block_size=SECTOR,
            server_flags=server_flags,
            identifier=identifier,
            index=index,
            dead_timeout=dead_timeout,
        )
    except netlink.NoFamily:
        return None
    except OSError as error:
        raise explain(error, "an NBD device" if index is None else f"/dev/nbd{index}") from error
    return NBDDevice(got, size, identifier, None)


def _attach_ioctl(sockets: list[int], size: int, server_flags: int, identifier: str, index: int | None) -> NBDDevice:
    if len(sockets) != 1:
        raise UsageError(f"{len(sockets)} connections need NBD over netlink, which is missing or switched off here")
    if size // SECTOR > 0x7FFFFFFF:
        raise MountError(f"{size} bytes are too many for NBD's ioctls, which end at 1 TiB here")
    session = _IoctlSession(sockets[0], size, server_flags, index)
    session.start()
    session.claimed.wait()
    if session.index is None:
        session.join()
        raise session.error or UnavailableError(f"no NBD device could be attached: {HELP}")
    return NBDDevice(session.index, size, identifier, session)


class _IoctlSession(threading.Thread):
    """The thread in which an ioctl-attached device lives: the kernel wants NBD_SET_SOCK and NBD_DO_IT from one thread.

    `claimed` is set when it is known whether there is a device: `index`, or else `error`. Owns the device's
    descriptor, and only borrows the socket until then.
    """

    def __init__(self, sock: int, size: int, server_flags: int, index: int | None) -> None:
        super().__init__(name="nbd-ioctl", daemon=True)
        self.claimed = threading.Event()
        self.index: int | None = None
        self.error: PyerofsError | None = None
        self._settings = [
            (_SET_BLKSIZE, SECTOR),
            (_SET_SIZE_BLOCKS, size // SECTOR),
            (_SET_TIMEOUT, 0),
            (_SET_FLAGS, server_flags),
        ]
        self._socket = sock
        self._named = index
        self._fd = -1
        self._lock = threading.Lock()  # guards _fd's close

    def run(self) -> None:
        # A signal handled in this thread would end NBD_DO_IT and the device with it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.index = self._claim()
        except OSError as error:
            self.error = explain(error, "an NBD device" if self._named is None else f"/dev/nbd{self._named}")
        except PyerofsError as error:
            self.error = error
        finally:
            self.claimed.set()
        if self.index is None:
            return
        try:
            fcntl.ioctl(self._fd, _DO_IT)
        except OSError as error:
            self.error = MountError(f"/dev/nbd{self.index}: the kernel gave it up ({error.strerror}); see `dmesg`")
        finally:
            with self._lock:
                self._close()

    def end(self) -> None:
        """Disconnect and wait until the thread is gone, 10 s at the most."""
        with self._lock:
            if self._fd >= 0:
                fcntl.ioctl(self._fd, _DISCONNECT)
                fcntl.ioctl(self._fd, _CLEAR_SOCK)
        self.join(10)

    def _claim(self) -> int:
        """Take the named device or the first free one: NBD_SET_SOCK is what no two processes can both do."""
        for index in indices() if self._named is None else [self._named]:
            if is_busy(index):
                continue
            make_node(index)
            fd = os.open(f"/dev/nbd{index}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _SET_SOCK, self._socket)
            except OSError as error:
                os.close(fd)
                # EBUSY: another thread's claim came first; EINVAL of a busy device: another process's netlink did.
                if error.errno == errno.EBUSY or is_busy(index):
                    continue
                raise
            self._fd = fd
            try:
                for request, value in self._settings:
                    fcntl.ioctl(fd, request, value)
            except BaseException:
                self._close()
                raise
            return index
        if self._named is not None:
            raise MountError(f"/dev/nbd{self._named} is in use: name another device, or none to get a free one")
        raise UnavailableError("every NBD device is in use: reload nbd with a larger nbds_max=, or unmount something")

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            fcntl.ioctl(fd, _CLEAR_SOCK)
        finally:
            os.close(fd)
