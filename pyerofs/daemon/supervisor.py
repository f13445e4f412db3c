"""The supervisor of one mount: a small process that starts the worker again when it dies, and ends one that hangs.

    python -P -m pyerofs.daemon.supervisor FD TARGET      FD: a channel to the worker (supervisor_link.py)

The kernel keeps the reads meanwhile. First the device gets a new socket, so that what it wants waits in there already
while the new worker comes up. Nothing here asks a registry or touches the filesystem; a process as small as this hardly
has a reason to die. What the request holds that is secret lives in its memory only.

With nbdfuse, and by ioctls, a worker cannot be replaced: there the supervisor says that it has died,
and tidies up when the mount has ended.

A worker hangs when the kernel has reads in flight and the data path answers no heartbeat, or finishes none of them
long after every deadline: that is looked at now and then, so that a mount at rest costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import time
from dataclasses import replace

from ..errors import InternalError, PyerofsError, unexpected
from ..events import Events
from ..kernel.mountpoint import MountWatch, mountinfo
from ..kernel.nbd_node import attribute, index_of, node
from ..kernel.reconnect import reconnect
from .channel import Channel
from .launch import WorkerProcess, begin, leave_terminal
from .log import open_logger
from .messages import Resume, Watch
from .record import read, start_of
from .remains import clear, is_mounted
from .supervisor_link import longer
from .tenancy import LOOK as TENANCY_LOOK
from .tenancy import Tenancy, is_private

LOOK = 5.0  # seconds between two looks at the device
HEARTBEAT_PATIENCE = 5.0  # seconds; more each time that it was wrong
PROGRESS_MARGIN = 60.0  # seconds without any read finished, beyond the time that one may take
COME_UP = 30.0  # seconds for a worker to serve
HANDOVER = 15.0  # seconds for a successor that another process starts
SUCCESSOR_LOOK = 0.1  # seconds between two looks for it
OOM_SCORE = -900  # of this process: the worker can be replaced, this one cannot

_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC, _READ = 0x25609513, 0
_BEAT_LENGTH = 512


class Heartbeat:
    """Asks over a connection like the kernel's. Owns the socket."""

    def __init__(self, fd: int):
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._cookie = 0
        self._answered = 0
        self._received = b""
        self._data = 0  # bytes of a reply that are still to come

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self) -> None:
        """Send a read, which passes the store's locks and may wait for the registry, and an empty read behind it.

        That one is refused at once, but only when the first has been dealt with.
        """
        self._cookie += 2
        with contextlib.suppress(OSError):  # it has died, or reads nothing: which will be seen
            self._socket.send(
                _REQUEST.pack(_REQUEST_MAGIC, 0, _READ, self._cookie - 1, 0, _BEAT_LENGTH)
                + _REQUEST.pack(_REQUEST_MAGIC, 0, _READ, self._cookie, 0, 0)
            )

    def listen(self) -> bool:
        """Take what has come; return False when the other side has hung up."""
        try:
            piece = self._socket.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._received += piece
        while True:
            skipped = min(self._data, len(self._received))
            self._received, self._data = self._received[skipped:], self._data - skipped
            if self._data or len(self._received) < _REPLY.size:
                return bool(piece)
            _, error, cookie = _REPLY.unpack(self._received[: _REPLY.size])
            self._received = self._received[_REPLY.size :]
            self._data = _BEAT_LENGTH if cookie % 2 and not error else 0
            if cookie % 2 == 0:
                self._answered = cookie

    def answered(self) -> bool:
        """Whether everything that was asked has been dealt with."""
        return self._answered == self._cookie

    def close(self) -> None:
        self._socket.close()


class Supervisor:
    """run() is its whole life. For the main thread."""

    def __init__(self, channel: Channel, what: Watch):
        self._events = Events()
        self._channel: Channel | None = channel
        self._pidfd = -1
        self._heart: Heartbeat | None = None
        self._released = ""  # what the worker said last of its end
        self._handed_over = 0.0
        self._mounts: MountWatch | None = None  # once the worker has died for good
        self._tenancy: Tenancy | None = None
        self._pause = 0.0
        self._patience = HEARTBEAT_PATIENCE
        self._asked = 0.0  # when the heartbeat that is not answered was sent; 0: none
        self._progress: dict[str, tuple[str, float]] = {}  # by device: its count of finished reads, and since when
        self._request = what.request
        self._record = what.record
        self._connections = what.connections
        self._timeout = what.timeout
        self._oom_score = what.oom_score
        to, level = what.log
        self.logger = open_logger(to, level, lambda _: None, target=self._record.target, id=self._record.id)
        self._take_up(channel.take_fds()[0])
        with contextlib.suppress(OSError):  # it has died already: which is what we are here for
            channel.send({"ready": os.getpid()})

    def _take_up(self, heart: int) -> None:
        """Watches the worker that the record names."""
        self._began = time.monotonic()
        self._asked = 0.0
        self._heart = Heartbeat(heart)
        self._events.watch(self._heart.fileno(), self._listen)
        if self._channel is not None:
            self._events.watch(self._channel.fileno(), self._hear)
        try:
            self._pidfd = os.pidfd_open(self._record.pid)
        except ProcessLookupError:
            self._events.after(0, self._died)
            return
        if start_of(self._record.pid) != self._record.started:
            self._events.after(0, self._died)
        self._events.watch(self._pidfd, self._died)

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends with its mount
        if self._record.how == "netlink":
            self._events.every(LOOK, self._look)
        self._events.run()

    # What the worker says

    def _hear(self) -> None:
        assert self._channel is not None  # noqa: S101 - it is watched
        try:
            message = self._channel.receive()
        except (OSError, ValueError, EOFError):
            self._events.unwatch(self._channel.fileno())
            return  # its death comes by the pidfd
        self._released = next(iter(message), "")
        if self._released == "bye":
            self._events.stop()  # the worker waits for this process, with nothing left that could need another worker

    def _listen(self) -> None:
        assert self._heart is not None  # noqa: S101 - it is watched
        if not self._heart.listen():
            self._events.unwatch(self._heart.fileno())
        elif self._asked and self._heart.answered():
            self._asked = 0.0

    # Does it live?

    def _look(self) -> None:
        if self._pidfd < 0:
            return
        now = time.monotonic()
        reading = [part.device for part in self._record.parts if self._is_reading(part.device, now)]
        if not reading and not self._asked:
            return
        since = min((self._progress[device][1] for device in reading), default=now)
        if self._asked and now - self._asked > self._patience:
            self._kill(f"it has not answered for {now - self._asked:.0f} s")
            self._patience *= 2  # a machine may be as slow as that
        elif now - since > self._timeout + PROGRESS_MARGIN:
            self._kill(f"no read has been answered for {now - since:.0f} s")
            self._progress.clear()
        elif not self._asked and self._heart is not None:
            self._heart.ask()
            self._asked = now

    def _is_reading(self, device: str, now: float) -> bool:
        """Whether reads of the device are in flight, and when it was last seen to finish one."""
        place = node(index_of(device))
        try:
            reading = int(attribute(place, "inflight").split()[0])
            finished = attribute(place, "stat").split()[0]
        except (OSError, ValueError, IndexError):
            return False  # the device is about to go
        if not reading or finished != self._progress.get(device, ("",))[0]:
            self._progress[device] = (finished, now)
        return reading > 0

    def _kill(self, why: str) -> None:
        self.logger.warning(f"the daemon {self._record.pid} hangs, {why}: replacing it")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    # When it does not

    def _died(self) -> None:
        pid = self._record.pid
        self._let_go()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if self._released == "bye":
            self._events.stop()
        elif self._released == "handover":
            self._handed_over = time.monotonic()
            self._see_successor()
        elif self._record.how != "netlink":
            self._mourn(pid)
        elif not self._record.attached():
            self._clean_up()
        else:
            self._pause = longer(self._pause, time.monotonic() - self._began)
            self.logger.warning(f"the daemon {pid} has died: replacing it")
            self._events.after(self._pause, self._restart)

    def _let_go(self) -> None:
        for thing in (self._heart, self._channel):
            if thing is not None:
                self._events.unwatch(thing.fileno())
                thing.close()
        if self._pidfd >= 0:
            self._events.unwatch(self._pidfd)
            os.close(self._pidfd)
        self._heart, self._channel, self._pidfd = None, None, -1

    def _clean_up(self) -> None:
        """Remove what is left of a mount that has ended while no worker was there to see it."""
        clear(self._record.id)
        self._events.stop()

    def _mourn(self, pid: int) -> None:
        """No other worker can take its place: what it has left is swept when the mount has ended."""
        target = self._record.target
        self.logger.error(
            f"the daemon {pid} has died, and nothing more can be read: `pyerofs umount {target}`, and mount it again"
        )
        self._mounts = MountWatch()
        self._events.watch(self._mounts.fileno(), self._see_unmount, MountWatch.EVENTS)
        device = next((mount.device for mount in mountinfo() if self._record.owns(mount)), "")
        if device and is_private():
            self._tenancy = Tenancy(device)
            self._events.every(TENANCY_LOOK, self._see_tenants)
        self._see_unmount()

    def _see_unmount(self) -> None:
        if not is_mounted(self._record):
            self._clean_up()

    def _see_tenants(self) -> None:
        if self._tenancy is not None and self._tenancy.ended():
            self._clean_up()  # the namespace ends with this process

    def _see_successor(self) -> None:
        now = read(self._record.id)
        if now is not None and now.pid != self._record.pid and now.alive():
            self._events.stop()
            return
        if time.monotonic() - self._handed_over < HANDOVER:
            self._events.after(SUCCESSOR_LOOK, self._see_successor)
            return
        self.logger.warning("no other daemon has taken over the mount")
        self._released = ""
        self._restart()

    def _restart(self) -> None:
        try:
            if not self._start_worker():
                self._clean_up()
        except (PyerofsError, OSError, ValueError) as e:
            self._pause = longer(self._pause)
            self.logger.error(f"cannot start a new daemon: {e}; retrying in {self._pause:g} s")
            self._events.after(self._pause, self._restart)

    def _start_worker(self) -> bool:
        """Start a worker; return False when there is no device any more to serve."""
        request = self._request
        if request is None:
            return False
        daemon = WorkerProcess(self._record.target)  # it comes up meanwhile
        sockets: list[socket.socket] = []
        counts: dict[str, int] = {}
        heart, theirs = socket.socketpair()
        try:
            for part in self._record.parts:
                for _ in range(self._connections):
                    if new := reconnect(index_of(part.device), part.id):
                        sockets.append(new)
                        counts[part.id] = counts.get(part.id, 0) + 1
            if not sockets:
                daemon.kill()
                heart.close()
                return False
            restarts = self._record.restarts + 1
            daemon.take_over(
                [*(sock.fileno() for sock in sockets), theirs.fileno()],
                request,
                Resume(self._record, restarts, counts, os.getpid(), self._oom_score),
                self.logger.info,
                patience=COME_UP,
            )
        except BaseException:
            heart.close()
            daemon.kill()
            raise
        finally:
            for sock in (*sockets, theirs):
                sock.close()
        self._record = replace(self._record, pid=daemon.pid, started=start_of(daemon.pid), restarts=restarts)
        self._channel = daemon.channel
        self._take_up(heart.detach())
        return True


def main() -> int:
    # Before anything is needed: a machine without memory ends the largest processes first.
    score = "/proc/self/oom_score_adj"
    with contextlib.suppress(OSError), open(score, "w", encoding="ascii") as f:
        f.write(str(OOM_SCORE))
    channel = Channel(begin())
    try:
        what = channel.receive().get("watch")
    except (EOFError, OSError):
        what = None
    if what is None:
        return 0  # the mount has failed: there is nothing to watch
    supervisor = Supervisor(channel, Watch.from_json(what))
    leave_terminal()
    try:
        supervisor.run()
    except Exception as e:
        error = unexpected(e)
        supervisor.logger.error(f"{error}\n{InternalError.of(e).trace}")
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
