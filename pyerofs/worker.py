"""The daemon of one mount: resolves, attaches, tells the caller what to mount, serves, and goes after the unmount.

It is started as `python -m pyerofs.worker FD TARGET`, FD being a socket to the process that mounts. Over it goes JSON,
one line a message, so that no secret is ever an argument:

    caller -> {"source", "fstype", "options": [...], "driver", "target", "verbosity", "directory", "environment"}
    worker -> {"mount": PATH}                       attached: mount this
    caller -> {"mounted": true}                     or it hangs up, and everything is taken back
    worker -> {"done": true}                        from now on alone
    worker -> {"log": TEXT} | {"error": TEXT, "status": N}      at any time before that
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from .cache import chosen_directory
from .errors import PyerofsError
from .events import Events
from .export import Export
from .manifests import Manifests
from .mountpoint import MNT_DETACH, UMOUNT_NOFOLLOW, MountWatch, find, is_local, umount
from .options import MountOptions, parse_mount_options
from .record import Record, start_of
from .server import Server
from .source import LocalSource, open_image

if TYPE_CHECKING:
    from .attachment import Attachment

RELEASE_INTERVAL = 1.0  # seconds between two looks at an attachment that others still use


class Caller:
    """The process that mounts, as long as it is there."""

    def __init__(self, fd: int):
        self._socket: socket.socket | None = socket.socket(fileno=fd)
        self._file = self._socket.makefile("r", encoding="utf-8")
        self._hung_up = False

    def receive(self) -> dict[str, Any]:
        """The next message; an empty one when the caller has gone."""
        if self._socket is None:
            return {}
        line = self._file.readline()
        return json.loads(line) if line.endswith("\n") else {}

    def send(self, **message: object) -> None:
        if self._socket is not None:
            try:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                # Nobody to tell. Whoever asks gone() learns of it, although there is nothing left to poll.
                self._hung_up = True
                self.close()

    def gone(self) -> bool:
        """Polled while the worker has no loop yet."""
        if self._socket is None:
            return self._hung_up  # or let go in good order
        return any(events & select.POLLHUP for _, events in _poll_now(self._socket.fileno()))

    def close(self) -> None:
        if self._socket is not None:
            self._file.close()
            self._socket.close()
            self._socket = None


def _poll_now(fd: int) -> list[tuple[int, int]]:
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    return poll.poll(0)


class Worker:
    """Everything that one mount needs; run() is its whole life."""

    def __init__(self, caller: Caller, request: dict[str, Any]):
        self._caller = caller
        self._target: str = request["target"]
        self._driver: str = request["driver"]
        self._source_text: str = request["source"]
        self._verbosity: int = request["verbosity"]
        self._options: MountOptions = parse_mount_options(request["options"], request["fstype"])
        self._alone = False
        self._id = f"pyerofs-{os.getpid()}-{time.time_ns():x}"
        self._events = Events()

    def log(self, text: str) -> None:
        """To the caller's terminal while there is one, then to syslog. From any thread."""
        if not self._alone:
            self._caller.send(log=text)
            return
        import syslog

        syslog.openlog("pyerofs", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_WARNING, f"{self._target}: {text}")

    def _trace(self, text: str) -> None:
        if not self._alone:
            self._caller.send(trace=text)

    def run(self) -> None:
        """Raises PyerofsError as long as the caller is there to hear of it."""
        export = self._open()
        try:
            superblock = export.superblock()
            if superblock.extra_devices and "device=" not in self._options.data:
                self.log(f"the image wants {superblock.extra_devices} more devices: give each with -o device=")
            server = Server(export, self.log)
            try:
                self._serve(export, server)
            finally:
                server.close()
        finally:
            export.close()

    def _open(self) -> Export:
        oci = self._options.oci
        if is_local(self._source_text, self._options.is_oci):
            return Export(LocalSource(self._source_text), oci, self.log)
        trace = self._trace if self._verbosity >= 2 else None
        kept = Manifests(chosen_directory(oci), self.log)
        source = open_image(self._source_text, oci, trace=trace, cancel=self._caller.gone, kept=kept)
        return Export(source, oci, self.log, cancel=self._caller.gone)

    def _serve(self, export: Export, server: Server) -> None:
        attachment = self._attach(export, server)
        record = self._record(export, attachment)
        try:
            record.write()
            self._caller.send(mount=attachment.path)
            if not self._caller.receive().get("mounted"):
                self._unmount_again(attachment)
                return
            attachment.mounted()
            self._go_alone()
            self._loop(server, attachment)
        finally:
            attachment.abort()
            record.remove()

    def _unmount_again(self, attachment: Attachment) -> None:
        """The caller has hung up: if it was killed, then perhaps after its mount(2)."""
        while (found := find(self._target)) and found.source == attachment.path:
            umount(self._target, MNT_DETACH | UMOUNT_NOFOLLOW)

    def _attach(self, export: Export, server: Server) -> Attachment:
        from .attachment import FuseAttachment, NBDAttachment

        if self._driver == "fuse":
            return FuseAttachment(server, self._id)
        return NBDAttachment(server, export.size, self._id, self._options)

    def _record(self, export: Export, attachment: Attachment) -> Record:
        return Record(
            id=self._id,
            pid=os.getpid(),
            started=start_of(os.getpid()),
            target=self._target,
            source=export.source.name,
            driver=self._driver,
            device=attachment.path,
            size=export.size,
            digest=export.source.digest,
            layer=export.source.layer,
        )

    def _go_alone(self) -> None:
        """Lets go of the caller and of all that is its."""
        self._caller.send(done=True)
        self._alone = True
        self._caller.close()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)

    def _loop(self, server: Server, attachment: Attachment) -> None:
        events = self._events

        def connection_ended() -> None:
            if server.acknowledge() == 0:
                events.stop()

        def try_release() -> None:
            if attachment.release():
                events.stop()

        def mounts_changed() -> None:
            if attachment.is_mounted():
                events.never(try_release)
            else:
                events.every(RELEASE_INTERVAL, try_release)
                try_release()

        def asked_to_end() -> None:
            try:
                umount(self._target)
            except PyerofsError as e:
                self.log(f"not ended by the signal: {e}")

        with MountWatch() as watch:
            events.watch(server.fileno(), connection_ended)
            events.watch(watch.fileno(), mounts_changed, watch.EVENTS)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                events.on_signal(number, asked_to_end)
            mounts_changed()  # what happened before the watch began
            events.run()
            events.unwatch(watch.fileno())


def main() -> int:
    caller = Caller(int(sys.argv[1]))
    request = caller.receive()
    if not request:
        return 1
    os.environ.clear()
    os.environ.update(request["environment"])
    try:
        os.chdir(request["directory"])  # where relative paths in the options are meant
        worker = Worker(caller, request)
        os.chdir("/")
        worker.run()
    except PyerofsError as e:
        caller.send(error=str(e), status=e.status)
        return e.status
    except Exception as e:  # a bug of ours: said in one line, with what finds it
        import traceback

        where = traceback.extract_tb(e.__traceback__)[-1]
        caller.send(error=f"internal error: {e!r} at {os.path.basename(where.filename)}:{where.lineno}", status=4)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
