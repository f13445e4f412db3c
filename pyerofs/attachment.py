"""Attachments: how an export becomes something that mount(2) can mount, and how it is let go again."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Protocol

from . import mountpoint
from .core import EXPORT_FLAGS
from .errors import MountFailure, SystemFailure
from .record import DIRECTORY, make_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .device import NBDDevice
    from .options import MountOptions
    from .server import Server
    from .verity import Table
    from .veritydevice import VerityDevice

# Seconds that the kernel waits for a new daemon if this one dies before the mount: nobody will start one, and the
# caller is in mount(2). Afterwards it is device.DEAD_TIMEOUT.
SETUP_DEAD_TIMEOUT = 5
ANSWER_MARGIN = 10.0  # seconds that an answer may take beyond oci.timeout, which ends the read with an error
CLOSE_DEADLINE = 2.0  # seconds for a kernel to finish a disconnect of its own, or a removal
FUSE_DEADLINE = 10.0  # seconds for nbdfuse to show its file


class Attachment(Protocol):
    """`path` is what to mount, `how` it is attached: netlink, ioctl or fuse."""

    path: str
    how: str

    def mounted(self) -> None:
        """The filesystem is mounted: from now on the attachment need not be kept for it."""

    def is_mounted(self) -> bool:
        """Whether this mount namespace still shows a mount of it."""

    def reconnect(self) -> bool:
        """A connection has ended that should not have: makes another one. False: that cannot be."""

    def release(self) -> bool:
        """Lets go if nobody uses it any more. False: somebody still does."""

    def abort(self) -> None:
        """Lets go whoever uses it. May be called again."""


class NBDAttachment:
    """A kernel's NBD device."""

    def __init__(self, server: Server, device: NBDDevice, *, closes_itself: bool):
        self._server = server
        self._device = device
        self.path = device.path
        self.index = device.index
        self.identifier = device.identifier
        self.how = device.how
        self._closes_itself = closes_itself

    @classmethod
    def attach(cls, server: Server, size: int, identifier: str, options: MountOptions) -> NBDAttachment:
        """A free device, or that which the options name. Errors as device.attach()."""
        from . import device

        kernel_ends = []
        try:
            for _ in range(options.oci.connections):
                ours, kernels = socket.socketpair()
                kernel_ends.append(kernels)
                server.add(ours, handshake=False)
            found = device.attach(
                [sock.fileno() for sock in kernel_ends],
                size,
                EXPORT_FLAGS,
                identifier,
                how=options.attach,
                device=options.device,
                dead_timeout=SETUP_DEAD_TIMEOUT,
                answer_timeout=options.oci.timeout + ANSWER_MARGIN,
            )
        finally:
            for sock in kernel_ends:
                sock.close()
        attachment = cls(server, found, closes_itself=False)
        try:
            found.settle()
        except BaseException:
            attachment.abort()
            raise
        return attachment

    @classmethod
    def adopt(
        cls, server: Server, path: str, size: int, identifier: str, sockets: Sequence[socket.socket], connections: int
    ) -> NBDAttachment:
        """A mounted device that another daemon has attached by netlink. The sockets are the server's ends of those that
        still live, from now on the server's; the others are replaced. MountFailure: the device has gone."""
        from .device import NBDDevice
        from .nbdnode import index_of

        found = NBDDevice(index_of(path), size, identifier, None)
        attachment = cls(server, found, closes_itself=True)
        for sock in sockets:
            server.add(sock, handshake=False)
        for _ in range(connections - len(sockets)):
            if not attachment.reconnect():
                raise MountFailure(f"{path} has been disconnected meanwhile")
        return attachment

    def reconnect(self) -> bool:
        """Another socket in place of one that has died. False: the device has gone, or cannot have one."""
        if self._device.how != "netlink" or not self._closes_itself:
            return False
        from .reconnect import reconnect

        sock = reconnect(self.index, self.identifier)
        if sock is not None:
            self._server.add(sock, handshake=False)
        return sock is not None

    def mounted(self) -> None:
        from .device import DEAD_TIMEOUT

        self._closes_itself = self._device.set_disconnect_on_close(DEAD_TIMEOUT)

    def is_mounted(self) -> bool:
        number = os.stat(self.path).st_rdev
        return mountpoint.is_mounted_device(f"{os.major(number)}:{os.minor(number)}")

    def release(self) -> bool:
        if self._closes_itself:
            return False  # the kernel does it, at the right moment, and the server's connections end
        if self._device.in_use():
            return False
        self.abort()
        return True

    def abort(self) -> None:
        if self._closes_itself:
            self._device.await_end(CLOSE_DEADLINE)
        self._device.disconnect()


class FuseAttachment:
    """A file that nbdfuse shows, for kernels without NBD."""

    def __init__(self, server: Server, identifier: str):
        import subprocess

        self.how = "fuse"
        self._directory = os.path.join(DIRECTORY, identifier)
        self.path = os.path.join(self._directory, "image")
        ours, clients = socket.socketpair()
        try:
            make_directory()
            os.mkdir(self._directory, mode=0o700)
            server.add(ours, handshake=True)
            with mountpoint.MountWatch() as watch:
                self._process = subprocess.Popen(  # noqa: S603 - no shell, our own arguments
                    ["nbdfuse", "--readonly", self.path, "--fd", str(clients.fileno())],  # noqa: S607 - found by PATH
                    pass_fds=[clients.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
                clients.close()
                try:
                    self._wait(watch)
                except BaseException:
                    self.abort()
                    raise
        except FileNotFoundError:
            os.rmdir(self._directory)
            raise SystemFailure("nbdfuse is not installed: apt-get install libnbd-bin fuse3") from None
        except OSError as e:
            raise SystemFailure(f"cannot start nbdfuse: {e.strerror}") from None
        finally:
            clients.close()

    def _wait(self, watch: mountpoint.MountWatch) -> None:
        poll = select.poll()
        poll.register(watch.fileno(), watch.EVENTS)
        assert self._process.stderr is not None  # noqa: S101 - it is a pipe
        poll.register(self._process.stderr.fileno(), select.POLLIN | select.POLLHUP)
        deadline = time.monotonic() + FUSE_DEADLINE
        while not self._shown():
            remaining = deadline - time.monotonic()
            events = dict(poll.poll(max(0.0, remaining) * 1000))
            if self._process.stderr.fileno() in events:
                text = self._process.stderr.read().decode(errors="replace").strip().splitlines()
                raise MountFailure(f"nbdfuse: {text[-1] if text else 'it ended without a word'}")
            if remaining <= 0:
                raise MountFailure(f"nbdfuse showed no file within {FUSE_DEADLINE:g} s")

    def _shown(self) -> bool:
        return mountpoint.find(self._directory) is not None

    def mounted(self) -> None:
        pass

    def reconnect(self) -> bool:
        return False  # nbdfuse has the one connection that it was started with

    def is_mounted(self) -> bool:
        return any(mount.fstype == "erofs" and mount.source == self.path for mount in mountpoint.mountinfo())

    def release(self) -> bool:
        with contextlib.suppress(MountFailure):
            mountpoint.umount(self._directory)
            self.abort()
            return True
        return False  # busy: another mount namespace has the filesystem, or somebody has the file open

    def abort(self) -> None:
        while self._shown():
            mountpoint.umount(self._directory, mountpoint.MNT_DETACH | mountpoint.UMOUNT_NOFOLLOW)
        self._process.terminate()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._directory)


class VerityAttachment:
    """A dm-verity device over another attachment, which it holds: what is mounted is that device, and when it has gone
    the one below goes as it does without it."""

    def __init__(self, below: Attachment, device: VerityDevice):
        self._below = below
        self._device = device
        self.path = device.path
        self.how = below.how

    @classmethod
    def attach(cls, below: Attachment, table: Table, identifier: str, timeout: float) -> VerityAttachment:
        """`timeout`: seconds for a read. After an error, as those of VerityDevice.open() and, for a file, of
        loop.attach(), `below` is still the caller's."""
        from . import loop
        from .veritydevice import VerityDevice

        path, fd = (below.path, -1) if below.how != "fuse" else loop.attach(below.path)
        try:
            device = VerityDevice.open(table, path, identifier, timeout + ANSWER_MARGIN)
        finally:
            if fd >= 0:
                os.close(fd)
        return cls(below, device)

    def mounted(self) -> None:
        self._below.mounted()
        self._device.let_go()

    def reconnect(self) -> bool:
        return self._below.reconnect()

    def is_mounted(self) -> bool:
        return mountpoint.is_mounted_device(self._device.number)

    def release(self) -> bool:
        return not self._device.exists() and self._below.release()

    def abort(self) -> None:
        if self._device.let_go():
            self._device.await_end(CLOSE_DEADLINE)
        self._below.abort()
