"""What keeps a mount: record, control socket, supervision, and the loop that waits for its end.

Everything here is for the worker's main thread, but for the answers on the control socket.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..config.option_edits import replaced
from ..config.options import parse_mount_options
from ..context import ignore
from ..errors import MountError, PyerofsError, UnavailableError
from ..events import Events
from ..export.server import WAKE
from ..kernel.mountpoint import MNT_DETACH, UMOUNT_NOFOLLOW, MountWatch, mountinfo, umount
from .control import Answer, ControlServer
from .messages import Handover, Watch
from .record import make_directory, start_of
from .supervisor_link import SupervisorLink, reap
from .tenancy import LOOK as TENANCY_LOOK
from .tenancy import Tenancy, is_private

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..config.options import MountOptions
    from .channel import Channel
    from .messages import MountRequest
    from .record import Record
    from .served_layer import ServedLayer
    from .starting import MountStart

# Seconds between two looks at an attachment that is still in use, doubling: the kernel ends a mount's last use of it
# just after the mount has gone from sight, others in their own time.
RELEASE_FIRST, RELEASE_MAX = 0.005, 1.0


class MountLifecycle:
    """Keeps one mount. Owns the parts' attachments and the record.

    `request` is what a successor is asked, secrets included; `stat` tells what the mount is doing, from any thread;
    `start`: what has been read; `log` gets warnings, `note` what goes as it should.
    begin() before the mount and mounted() after it, or go_on() for one that is mounted; then run(), which ends with the
    mount. end() takes back what begin() has done.
    """

    def __init__(
        self,
        parts: Sequence[ServedLayer],
        record: Record,
        request: MountRequest,
        options: MountOptions,
        stat: Callable[[Record], dict[str, Any]],
        start: MountStart,
        log: Callable[[str], None],
        note: Callable[[str], None] = ignore,
    ):
        self._parts = parts
        self._held = list(parts)  # whose attachments have not been let go
        self._record = record
        self._request = request
        self._options = options
        self._stat = stat
        self._start = start
        self._log = log
        self._note = note
        self._events = Events()
        self._supervision = SupervisorLink(parts[-1].server, log)
        self._control: ControlServer | None = None
        self._changing = threading.Lock()
        self._leave = threading.Lock()  # held from the moment on when the mount goes to another daemon
        self._left = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._handed_over = False
        self._pause = RELEASE_FIRST
        self._dead = ""  # why it cannot be read any more
        self._tenancy: Tenancy | None = None

    @property
    def _can_go_on(self) -> bool:
        """Only a device that was attached by netlink takes a new server."""
        return self._record.how == "netlink"

    def begin(self) -> None:
        """Write the record and listen on the control socket. Raises UnavailableError."""
        self._write_record()
        self._listen()
        self._supervision.start(self._record.target)

    def mounted(self, number: str) -> None:
        """Note that the caller has mounted it, as `number` (major:minor)."""
        self._record = replace(self._record, number=number)
        self._supervise()
        self._note(f"mounted {self._record.source} by {self._record.driver}")

    def go_on(self, channel: Channel | None, supervisor: int) -> None:
        """`channel`: to the supervisor that has started this worker; None when it was not a supervisor."""
        self._listen()
        if channel is not None:
            self._supervision.adopt(channel, supervisor)
            self._write_record()
        else:
            self._supervision.start(self._record.target)
            self._supervise()
        self._note(f"recovered: daemon {os.getpid()} serves the mount now (restart {self._record.restarts})")

    def _listen(self) -> None:
        try:
            make_directory()
            handlers: dict[str, Callable[[dict[str, Any]], Answer]] = {
                "handover": self._hand_over,
                "stat": self._tell,
                "change": self._change,
                "trace": self._trace,
                "prefetch": self._prefetch,
            }
            self._control = ControlServer(self._record.control, handlers)
        except OSError as e:
            raise UnavailableError(f"cannot listen on {self._record.control}: {e.strerror}") from None

    def _write_record(self) -> None:
        self._record = self._own_record()
        self._record.write()

    def _own_record(self) -> Record:
        return replace(
            self._record,
            pid=os.getpid(),
            started=start_of(os.getpid()),
            supervisor=self._supervision.pid,
            supervisor_started=self._supervision.started,
        )

    def _supervise(self) -> None:
        with open("/proc/self/oom_score_adj", encoding="ascii") as f:
            score = f.read().strip()
        self._supervision.watch(
            Watch(
                record=self._own_record(),
                request=self._request if self._can_go_on else None,
                connections=self._options.oci.connections,
                timeout=self._options.oci.timeout,
                oom_score=score,
                log=(self._options.log_to, self._options.log_level),
            )
        )
        self._write_record()  # who reads there of a supervisor may rely on it

    def run(self) -> None:
        """Serve until the mount has ended, or another daemon has taken it over."""
        try:
            with MountWatch() as watch:
                self._loop(watch)
        except BaseException:
            if not self._can_go_on:
                self.end()
            raise  # with a supervisor another worker takes this one's place
        if self._handed_over:
            self._note("handed over to another daemon")
            return
        self._note("unmounted")
        self.end()

    def end(self) -> None:
        for part in self._parts:
            try:
                part.attachment.abort()
            except PyerofsError as e:
                self._log(f"cannot detach {part.attachment.path}: {e}")
        self._record.remove()
        self._supervision.end("bye")
        if self._control is not None:
            self._control.close()

    def _loop(self, watch: MountWatch) -> None:
        events = self._events
        assert self._control is not None  # noqa: S101 - begin() or go_on() has made it
        for part in self._parts:
            events.watch(part.server.fileno(), partial(self._connection_ended, part))
        events.watch(watch.fileno(), self._mounts_changed, watch.EVENTS)
        events.watch(self._control.fileno(), self._control.accept)
        events.watch(self._left, events.stop)
        self._watch_supervisor()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            events.on_signal(number, self._asked_to_end)
        events.on_signal(signal.SIGCHLD, reap)
        events.on_signal(WAKE, lambda: None)
        self._mounts_changed()  # what happened before the watch began
        device = next((mount.device for mount in mountinfo() if self._record.owns(mount)), "")
        if device and is_private():
            self._tenancy = Tenancy(device)
            events.every(TENANCY_LOOK, self._see_tenants)
        events.run()

    # What may end it

    def _connection_ended(self, part: ServedLayer) -> None:
        left = part.server.acknowledge()
        if self._leave.locked() or left == self._options.oci.connections:
            return
        if not part.server.ended_softly:
            # Not the kernel's wish: a reply that broke off, or a socket that it took for dead.
            try:
                if part.attachment.reconnect():
                    self._log("a connection to the kernel was lost; replacing it")
                    return
            except PyerofsError as e:
                self._log(f"a connection to the kernel was lost: {e}")
                if left:
                    return
        if part.attachment.how != "netlink" and not part.server.ended_softly and self._is_mounted():
            self._fail(part)
        elif not any(part.server.clients() for part in self._parts):
            self._events.stop()

    def _fail(self, part: ServedLayer) -> None:
        """Note that the link between the kernel and us has gone, and that nothing can take its place.

        The mount goes on until it is unmounted, and this process with it, to say so.
        """
        what = "nbdfuse" if part.attachment.how == "fuse" else part.attachment.path
        self._dead = f"{what} has died, and nothing more can be read"
        self._log(f"{self._dead}: `pyerofs umount {self._record.target}`, and mount it again")

    def _mounts_changed(self) -> None:
        self._pause = RELEASE_FIRST
        if not self._is_mounted() or not self._can_go_on:
            # The number of a filesystem that is no disk's may be another's by now: then the attempt tells.
            self._try_release()

    def _is_mounted(self) -> bool:
        if any(self._record.owns(mount) for mount in mountinfo()):
            return True
        return any(part.attachment.is_mounted() for part in self._parts)

    def _try_release(self) -> None:
        """Let go of what is no longer in use; look again as long as the rest is not mounted."""
        if self._leave.locked():
            return
        self._held = [part for part in self._held if not part.attachment.release()]
        if not self._held:
            self._events.stop()
        elif self._pause < RELEASE_MAX or not self._is_mounted():
            self._events.after(self._pause, self._try_release)
            self._pause = min(2 * self._pause, RELEASE_MAX)

    def _see_tenants(self) -> None:
        """Unmount where no process is left that could."""
        if self._tenancy is None or not self._tenancy.ended():
            return
        self._log("unmounted: the last process of its mount namespace has ended")
        self._events.never(self._see_tenants)
        for mount in reversed(mountinfo()):
            if self._record.owns(mount):
                try:
                    umount(mount.target, MNT_DETACH | UMOUNT_NOFOLLOW)
                except PyerofsError as e:
                    self._log(str(e))

    def _asked_to_end(self) -> None:
        if not self._is_mounted():
            return  # it is about to end
        try:
            umount(self._record.target)
        except PyerofsError as e:
            self._log(f"not unmounted at SIGTERM: {e}")

    def _watch_supervisor(self) -> None:
        """Or, if there is none, has another one started after a while."""
        if self._supervision.fileno() >= 0:
            self._events.watch(self._supervision.fileno(), self._supervisor_speaks)
        else:
            self._events.after(self._supervision.pause, self._start_supervisor)

    def _supervisor_speaks(self) -> None:
        self._events.unwatch(self._supervision.fileno())
        self._supervision.lost()
        self._watch_supervisor()

    def _start_supervisor(self) -> None:
        if self._leave.locked():
            return  # the next daemon has its own
        self._supervision.start(self._record.target)
        self._supervise()
        self._watch_supervisor()

    # What others ask

    def _tell(self, _: dict[str, Any]) -> Answer:
        return Answer({**self._stat(self._record), **({"dead": self._dead} if self._dead else {})})

    def _change(self, question: dict[str, Any]) -> Answer:
        """Fill by other rules: what can change where no other daemon can take over."""
        with self._changing:
            request = replace(self._request, options=replaced(self._request.options, question["options"]))
            oci = parse_mount_options(request.options, request.fstype, request.defaults).oci
            for part in self._parts:
                part.export.change_fill(oci.fill, oci.fill_rate)
            self._request = request
        return Answer({"changed": True})

    def _trace(self, _: dict[str, Any]) -> Answer:
        return Answer({"trace": self._start.trace().to_bytes().decode()})

    def _prefetch(self, question: dict[str, Any]) -> Answer:
        paths = [str(path).encode(errors="surrogateescape") for path in question.get("paths", ())]
        wanted, here = self._start.prefetch(paths)
        return Answer({"wanted_bytes": wanted, "present_bytes": here})

    def _hand_over(self, _: dict[str, Any]) -> Answer:
        if not self._can_go_on:
            raise MountError(
                f"{self._record.target}: only a mount that was attached by netlink can be given a new daemon: "
                "unmount it and mount it again"
            )
        if not self._leave.acquire(blocking=False):
            raise MountError(f"{self._record.target} is already being handed over")
        self._supervision.end("handover")
        for part in self._parts:
            part.server.begin_pause()
        paused = [part.server.pause() for part in self._parts]
        sockets = [sock for socks in paused for sock in socks]

        def sent() -> None:
            for sock in sockets:
                sock.close()
            self._handed_over = True
            os.eventfd_write(self._left, 1)

        counts = {part.id: len(socks) for part, socks in zip(self._parts, paused, strict=True)}
        return Answer(Handover(self._request, counts).to_json(), [sock.fileno() for sock in sockets], sent)
