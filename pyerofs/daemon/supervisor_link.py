"""A worker's end of its supervision: it starts the supervisor, and tells it how the worker means to end.

The two watch each other: the supervisor replaces a worker that dies, a worker starts a supervisor in place of one that
dies. daemon/messages.py says what they say to one another: "bye" is that the mount has ended, "handover" that another
process starts the successor.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING

from .channel import Channel
from .launch import spawn
from .record import start_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..export.server import Server
    from .messages import Watch

READY_PATIENCE = 40.0  # seconds for a supervisor to come up; less than reattach waits for all of it
END_PATIENCE = 5.0  # seconds for one to end when it is told to; it may have to come up first
LIFE_MIN = 1.0  # seconds: a process that has lived so long is replaced without a pause
PAUSE_FIRST, PAUSE_MAX = 0.1, 10.0  # seconds, doubling, before one that dies at once is replaced
ALONE = "until there is one, the daemon is not replaced if it dies"


class SupervisorLink:
    """Owned by the worker's main thread. `log` gets a line for what goes wrong: a mount without supervisor goes on."""

    pid = 0
    started = 0
    pause = 0.0  # seconds to wait before another one is started

    def __init__(self, server: Server, log: Callable[[str], None]):
        self._server = server
        self._log = log
        self._channel: Channel | None = None
        self._began = 0.0

    def start(self, target: str) -> None:
        """Start a supervisor, which comes up while the caller goes on; watch() waits for it."""
        ours, theirs = socket.socketpair()
        ours.settimeout(READY_PATIENCE)
        self._began = time.monotonic()
        try:
            self.pid = spawn("supervisor", target, socket_=theirs)
            self.started = start_of(self.pid)
            self._channel = Channel(ours)
        except OSError as e:
            ours.close()
            self._log(f"cannot start a supervisor ({e.strerror}): {ALONE}")
            self.pause = longer(self.pause)
        finally:
            theirs.close()

    def adopt(self, channel: Channel, pid: int) -> None:
        """Take the supervisor that has started this worker and watches it.

        The channel belongs to this object from now on.
        """
        self._channel, self.pid, self.started, self._began = channel, pid, start_of(pid), time.monotonic()

    def fileno(self) -> int:
        """Return what becomes readable when the supervisor has died; -1 when there is none."""
        return self._channel.fileno() if self._channel else -1

    def watch(self, what: Watch) -> None:
        """Have a supervisor that start() has started do its work, and wait until it does."""
        channel = self._channel
        if channel is None:
            return
        heart, ours = socket.socketpair()
        try:
            self._server.add(ours, handshake=False, monitor=True)
            channel.send({"watch": what.to_json()}, [heart.fileno()])
            channel.receive()
            channel.socket.settimeout(None)
        except (OSError, ValueError, EOFError) as e:
            self._log(f"the supervisor failed to start ({e}): {ALONE}")
            self.pause = longer(self.pause)
            self._close()
        finally:
            heart.close()

    def lost(self) -> None:
        """Note that the supervisor has died, as fileno() has told."""
        self._log("the supervisor has died")
        self.pause = longer(self.pause, time.monotonic() - self._began)
        self._close()

    def end(self, word: str) -> None:
        """Tell the supervisor how the worker ends; `word`: bye or handover.

        With the mount its supervisor has gone, too: a caller that waits for the worker's end may rely on that, unless
        the supervisor does not end in time.
        """
        if self._channel is None:
            return
        with contextlib.suppress(OSError):  # it has died: there is nothing to tell it
            self._channel.send({word: True})
        pid = self.pid if word == "bye" and start_of(self.pid) == self.started else 0
        self._close()
        with contextlib.suppress(OSError):  # it has ended
            if pid:
                fd = os.pidfd_open(pid)
                try:
                    select.select([fd], [], [], END_PATIENCE)
                finally:
                    os.close(fd)

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel, self.pid, self.started = None, 0, 0


def longer(pause: float, lived: float = 0.0) -> float:
    """Return the next pause before a process that died after `lived` seconds, or did not come up, is started again.

    No two processes shall keep a machine busy with starting one another.
    """
    return 0.0 if lived >= LIFE_MIN else min(max(2 * pause, PAUSE_FIRST), PAUSE_MAX)


def reap() -> None:
    """Collect supervisors that have ended; nothing waits for them."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
