"""Put a dm-verity device over another attachment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...kernel import mountpoint
from .base import ANSWER_MARGIN, CLOSE_DEADLINE, Attachment

if TYPE_CHECKING:
    from ...erofs.dmverity import Table
    from ...kernel.dmverity import VerityDevice


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
        from ...kernel import loop
        from ...kernel.dmverity import VerityDevice

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
