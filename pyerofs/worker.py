"""The daemon of one mount: resolves, attaches, tells the caller what to mount, serves, and goes after the unmount.

It is started as `python -m pyerofs.worker FD TARGET`, FD being a channel to the process that starts it:

    caller -> {"source", "fstype", "options": [...], "defaults", "driver", "target", "verbosity",
               "directory", "environment"}
    worker -> {"mount": PATH}                       attached: mount this
    caller -> {"mounted": true}                     or it hangs up, and everything is taken back
    worker -> {"done": true}                        from now on alone
    worker -> {"log": TEXT} | {"error": TEXT, "status": N}      at any time before that

A worker that takes the place of another one gets {"resume": {...}} as well, with the sockets of the device, and says
{"done"} or {"error"}: it resolves nothing and asks no registry.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import config
from .cache import chosen_directory
from .channel import Channel
from .errors import MountFailure, PyerofsError
from .export import Export
from .keeper import Keeper
from .layer import Layer
from .log import open_logger
from .manifests import Manifests
from .mountpoint import MNT_DETACH, UMOUNT_NOFOLLOW, find, is_local, umount
from .options import MountOptions, parse_mount_options, without_secrets
from .record import Record, start_of
from .server import Server
from .source import LocalSource, open_image, open_layer
from .status import snapshot

if TYPE_CHECKING:
    from .attachment import Attachment

# What a daemon that is started by hand in place of one that has died gets of the environment: no secrets.
_ENVIRONMENT = ("HOME", "PATH", "LANG", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "SSL_CERT_FILE", "no_proxy", "NO_PROXY")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY")


class Caller:
    """The process that mounts, as long as it is there."""

    def __init__(self, channel: Channel):
        self.channel: Channel | None = channel
        self._hung_up = False

    def receive(self) -> dict[str, Any]:
        """The next message; an empty one when the caller has gone."""
        try:
            return self.channel.receive() if self.channel else {}
        except (OSError, ValueError, EOFError):
            return {}

    def send(self, **message: object) -> None:
        if self.channel is not None:
            try:
                self.channel.send(message)
            except OSError:
                # Nobody to tell. Whoever asks gone() learns of it, although there is nothing left to poll.
                self._hung_up = True
                self.close()

    def gone(self) -> bool:
        """Polled while the worker has no loop yet."""
        if self.channel is None:
            return self._hung_up  # or let go in good order
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLHUP)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class Worker:
    """Everything that one mount needs; run() is its whole life."""

    def __init__(self, caller: Caller, request: dict[str, Any]):
        self._caller = caller
        self._resume: dict[str, Any] = request.pop("resume", {})
        self._request = request
        self._target: str = request["target"]
        self._driver: str = request["driver"]
        self._source_text: str = request["source"]
        self._options: MountOptions = parse_mount_options(
            request["options"], request["fstype"], request.get("defaults", ())
        )
        self._id = self._resume["record"]["id"] if self._resume else f"pyerofs-{os.getpid()}-{time.time_ns():x}"
        self._alone = False
        self._started = time.monotonic()
        about = {"target": self._target, "id": self._id, "source": self._source_text, "driver": self._driver}
        self.logger = open_logger(self._options.log_to, self._options.log_level, self.log, **about)

    def log(self, text: str) -> None:
        """To the caller's terminal while there is one, then to the log. From any thread."""
        if self._alone:
            self.logger.warning(text)
        else:
            self._caller.send(log=text)

    def _trace(self, text: str) -> None:
        if not self._alone:
            self._caller.send(trace=text)

    def run(self) -> None:
        """Raises PyerofsError as long as the caller is there to hear of it."""
        export = self._open()
        try:
            server = Server(export, self.log)
            try:
                if self._resume:
                    self._go_on(export, server)
                else:
                    self._begin(export, server)
            finally:
                server.close()
        finally:
            export.close()

    def _open(self) -> Export:
        oci = self._options.oci
        if is_local(self._source_text, self._options.is_oci):
            source = LocalSource(self._source_text)
            if self._resume and source.identity != self._resume["record"]["identity"]:
                source.close()
                raise MountFailure(f"{self._source_text} is not the file any more that was mounted")
            return Export(source, oci, self.log)
        if self._resume:
            was = Record(**self._resume["record"])
            layer = Layer.from_dict(was.origin) if was.origin else Layer(was.layer, was.digest, was.size)
            return Export(open_layer(was.source, layer, was.size, oci, log=self.log), oci, self.log)
        trace = self._trace if self._request["verbosity"] >= 2 else None
        kept = Manifests(chosen_directory(oci), self.log)
        image = open_image(self._source_text, oci, trace=trace, cancel=self._caller.gone, kept=kept, log=self.log)
        return Export(image, oci, self.log, cancel=self._caller.gone)

    # A new mount

    def _begin(self, export: Export, server: Server) -> None:
        superblock = export.superblock()
        if superblock.extra_devices and "device=" not in self._options.data:
            self.log(f"the image wants {superblock.extra_devices} more devices: give each with -o device=")
        attachment = self._attach(export, server)
        keeper = self._keeper(export, server, attachment, self._record(export, attachment))
        try:
            keeper.begin()
            self._caller.send(mount=attachment.path)
            if not self._caller.receive().get("mounted"):
                self._unmount_again(attachment)
                keeper.end()
                return
            attachment.mounted()
            keeper.mounted()
        except BaseException:
            keeper.end()
            raise
        self._caller.send(done=True)
        self._caller.close()
        self._go_alone()
        keeper.run()

    def _keeper(self, export: Export, server: Server, attachment: Attachment, record: Record) -> Keeper:
        def stat(now: Record) -> dict[str, Any]:
            return snapshot(export, now, self._started)

        return Keeper(server, attachment, record, self._request, self._options, stat, self.log)

    def _unmount_again(self, attachment: Attachment) -> None:
        """The caller has hung up: if it was killed, then perhaps after its mount(2)."""
        while (found := find(self._target)) and found.source == attachment.path:
            umount(self._target, MNT_DETACH | UMOUNT_NOFOLLOW)

    def _attach(self, export: Export, server: Server) -> Attachment:
        from .attachment import FuseAttachment, NBDAttachment

        if self._driver == "fuse":
            return FuseAttachment(server, self._id)
        return NBDAttachment.attach(server, export.size, self._id, self._options)

    def _record(self, export: Export, attachment: Attachment) -> Record:
        request, secrets = recorded(self._request)
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
            origin={} if isinstance(export.source, LocalSource) else export.source.origin.as_dict(),
            how=attachment.how,
            identity=export.source.identity if isinstance(export.source, LocalSource) else "",
            request=request,
            secrets=secrets,
        )

    # In the place of another worker

    def _go_on(self, export: Export, server: Server) -> None:
        from .attachment import NBDAttachment

        was = Record(**self._resume["record"])
        supervisor: int = self._resume["supervisor"]
        assert self._caller.channel is not None  # noqa: S101 - it has just asked
        fds = self._caller.channel.take_fds()
        heart = fds.pop() if supervisor else -1
        sockets = [socket.socket(fileno=fd) for fd in fds]
        attachment = NBDAttachment.adopt(server, was.device, was.size, was.id, sockets, self._options.oci.connections)
        record = replace(was, restarts=self._resume["restarts"])
        keeper = self._keeper(export, server, attachment, record)
        if supervisor:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as f:
                f.write(self._resume["oom_score"])  # not the supervisor's
            server.add(socket.socket(fileno=heart), handshake=False, monitor=True)
        keeper.go_on(self._caller.channel if supervisor else None, supervisor)
        self._caller.send(done=True)
        if not supervisor:
            self._caller.close()
        self._go_alone()
        keeper.run()

    def _go_alone(self) -> None:
        """Lets go of the caller's terminal and of all else that is its."""
        self._alone = True
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)


def recorded(request: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """What of the request may be written to a file; whether it lacks something for that."""
    options, secrets = without_secrets(request["options"])
    environment = {}
    for name, value in request["environment"].items():
        if name in _PROXIES and "@" in value:
            secrets = True
        elif name in _ENVIRONMENT or name in _PROXIES or name.startswith("XDG_"):
            environment[name] = value
    defaults = config.without_secrets(request.get("defaults", ()))
    kept = {**request, "options": options, "defaults": defaults, "environment": environment, "verbosity": 0}
    return kept, secrets


def main() -> int:
    caller = Caller(Channel(socket.socket(fileno=int(sys.argv[1]))))
    request = caller.receive()
    if not request:
        return 1
    os.environ.clear()
    os.environ.update(request["environment"])
    worker = None
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
        text = f"internal error: {e!r} at {os.path.basename(where.filename)}:{where.lineno}"
        caller.send(error=text, status=4)
        if worker is not None:
            worker.logger.error(text)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
