"""Attachments: how an export becomes something that mount(2) can mount, and how it is let go again."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Protocol

from . import mountpoint
from .core import EXPORT_FLAGS
from .errors import MountFailure

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


class Attachment(Protocol):
    """`path` is what to mount, `how` it is attached: netlink, ioctl or fuse."""

    path: str
    how: str

    def mounted(self) -> None:
        """Note that the filesystem is mounted: from now on the attachment need not be kept for it."""

    def is_mounted(self) -> bool:
        """Whether this mount namespace still shows a mount of it."""

    def reconnect(self) -> bool:
        """Replace a connection that has ended unexpectedly. Returns False where that is impossible."""

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
        """Attach a free device, or the one that the options name. Raises as device.attach()."""
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
        """Take over a mounted device that another daemon has attached by netlink.

        The sockets are the server's ends of the connections that still live, and belong to the server from now on; the
        others are replaced. Raises MountFailure where the device has gone.
        """
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


class VerityAttachment:
    """A dm-verity device over another attachment, which it owns.

    What is mounted is the dm-verity device; when it has gone, the attachment below ends as it does without it.
    """

    def __init__(self, below: Attachment, device: VerityDevice):
        self._below = below
        self._device = device
        self.path = device.path
        self.how = below.how

    @classmethod
    def attach(cls, below: Attachment, table: Table, identifier: str, timeout: float) -> VerityAttachment:
        """Open a dm-verity device over `below`.

        `timeout`: seconds for one read. Raises as VerityDevice.open() and, for a file, as loop.attach(); `below` is
        then still the caller's.
        """
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
