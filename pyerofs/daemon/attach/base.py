"""The Attachment protocol: how an export becomes something that mount(2) can mount, and how it is let go."""

from __future__ import annotations

from typing import Protocol

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
        """Detach if it is no longer in use. Returns False if it still is."""

    def abort(self) -> None:
        """Detach even while in use. Idempotent."""
