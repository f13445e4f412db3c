"""The ways in which an export becomes a device, by the name of the mount's driver.

A new one is a row of _KINDS and a module beside this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...config.options import MountOptions
    from ...export.server import Server
    from .base import Attachment

    Attach = Callable[[Server, int, str, MountOptions, Callable[[str], None]], Attachment]


def _nbd(server: Server, size: int, identifier: str, options: MountOptions, say: Callable[[str], None]) -> Attachment:
    from .nbd import NBDAttachment

    return NBDAttachment.attach(server, size, identifier, options)


def _fuse(server: Server, size: int, identifier: str, options: MountOptions, say: Callable[[str], None]) -> Attachment:
    from .fuse import FuseAttachment

    return FuseAttachment(server, identifier, say)


_KINDS: dict[str, Attach] = {"nbd": _nbd, "fuse": _fuse}


def attach(
    driver: str, server: Server, size: int, identifier: str, options: MountOptions, say: Callable[[str], None]
) -> Attachment:
    """Attach an export of `size` bytes; `say` gets what a helper program writes.

    Raises UsageError, UnavailableError, MountError.
    """
    return _KINDS[driver](server, size, identifier, options, say)
