"""Giving a kernel's NBD device, whose server has gone, a new socket: NBD_CMD_RECONFIGURE."""

from __future__ import annotations

import errno
import select
import socket
import time

from ..errors import MountError
from . import netlink
from .nbd_node import backend_of, explain

PATIENCE = 10.0  # seconds for the kernel to notice that the old socket is dead
PAUSE = 0.002  # seconds between two tries: it notices within a few of them


def reconnect(index: int, identifier: str) -> socket.socket | None:
    """Return the server's end of a new socket of device `index`, in the transmission phase; the caller owns it.

    None: the device is no longer the one that was attached as `identifier`. Raises MountError when no socket of it is
    dead, UsageError and UnavailableError without the right or the kernel for it. Any thread.
    """
    deadline = time.monotonic() + PATIENCE
    while backend_of(index) == identifier:
        ours, kernels = socket.socketpair()
        try:
            netlink.reconfigure(index, identifier=identifier, sockets=[kernels.fileno()])
        except OSError as error:
            ours.close()
            if error.errno == errno.EINVAL:
                return None  # disconnected for good, although sysfs shows it as before while it is open
            raise explain(error, f"/dev/nbd{index}") from error
        finally:
            kernels.close()
        # A kernel that had no dead socket to replace says nothing. But then this was the last reference to the other
        # end, and it has hung up.
        if not _hung_up(ours):
            return ours
        ours.close()
        if time.monotonic() > deadline:
            raise MountError(f"/dev/nbd{index} takes no new socket: every one that it has is alive")
        time.sleep(PAUSE)
    return None


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLHUP)
    return bool(poll.poll(0))
