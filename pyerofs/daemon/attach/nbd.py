"""Attach an export as a kernel NBD device."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from ...core import EXPORT_FLAGS
from ...errors import MountError
from ...kernel import mountpoint
from .base import ANSWER_MARGIN, CLOSE_DEADLINE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...config.options import MountOptions
    from ...export.server import Server
    from ...kernel.nbd import NBDDevice


# Seconds that the kernel waits for a new daemon if this one dies before the mount: none will be started, and the
# caller is in mount(2). Afterwards it is nbd.DEAD_TIMEOUT.
SETUP_DEAD_TIMEOUT = 5


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
        """Attach a free device, or the one that the options name. Raises as nbd.attach()."""
        from ...kernel import nbd

        kernel_ends = []
        try:
            for _ in range(options.oci.connections):
                ours, kernels = socket.socketpair()
                kernel_ends.append(kernels)
                server.add(ours, handshake=False)
            found = nbd.attach(
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
        others are replaced. Raises MountError where the device has gone.
        """
        from ...kernel.nbd import NBDDevice
        from ...kernel.nbd_node import index_of

        found = NBDDevice(index_of(path), size, identifier, None)
        attachment = cls(server, found, closes_itself=True)
        for sock in sockets:
            server.add(sock, handshake=False)
        for _ in range(connections - len(sockets)):
            if not attachment.reconnect():
                raise MountError(f"{path} was disconnected in the meantime")
        return attachment

    def reconnect(self) -> bool:
        """Another socket in place of one that has died. False: the device has gone, or cannot have one."""
        if self._device.how != "netlink" or not self._closes_itself:
            return False
        from ...kernel.reconnect import reconnect

        sock = reconnect(self.index, self.identifier)
        if sock is not None:
            self._server.add(sock, handshake=False)
        return sock is not None

    def mounted(self) -> None:
        from ...kernel.nbd import DEAD_TIMEOUT

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
