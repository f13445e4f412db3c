"""Telling a service manager that we are ready: sd_notify(3)'s protocol."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send `state`, such as READY=1, where $NOTIFY_SOCKET asks for it. Any thread.

    Raises nothing: a mount does not depend on who listens.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
