"""The daemon of one mount: resolves, attaches, tells the caller what to mount, serves, and goes after the unmount.

It is started as `python -P -m pyerofs.daemon.worker FD TARGET`, FD being a channel to the process that starts it;
daemon/messages.py says what they say to one another. A worker that takes the place of another one resolves nothing and
asks no registry.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cache.manifests import ManifestCache
from ..cache.paths import chosen_directory
from ..config.options import MountOptions, parse_mount_options
from ..context import Context
from ..erofs.foreign import NotErofsError
from ..erofs.layer import Layer
from ..errors import InternalError, MountError, UsageError, to_json, unexpected
from ..export.base import Export
from ..kernel.mountpoint import MNT_DETACH, UMOUNT_NOFOLLOW, find, umount
from ..source.local import LocalSource
from ..source.open import plan_layers, reopen_layers
from .caller import Caller
from .channel import Channel
from .launch import begin, leave_terminal
from .lifecycle import MountLifecycle
from .log import open_logger
from .messages import MountPlan, MountRequest, PlannedMount, Resume
from .record import Record, read_all, start_of
from .served_layer import ServedLayer, choose_tree, for_each
from .starting import MountStart
from .stats import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..erofs.compose import Role
    from ..erofs.dmverity import HashTree
    from ..source.base import Source
    from ..source.converted_cache import ConversionRequest

FILES = 1 << 16  # open files


class Piece(NamedTuple):
    """What is to become a part."""

    open: Callable[[Context], Source | LocalSource]
    layer: int = -1
    role: Role = "lower"
    devices: Sequence[int] = ()
    tree: HashTree | None = None


class Worker:
    """Everything that one mount needs; run() is its whole life."""

    def __init__(self, caller: Caller, request: MountRequest, resume: Resume | None = None):
        self._caller = caller
        self._resume = resume
        self._request = request
        self._target = request.target
        self._driver = request.driver
        self._options: MountOptions = parse_mount_options(request.options, request.fstype, request.defaults)
        self._location = request.get_location()
        self._id = resume.record.id if resume else f"pyerofs-{os.getpid()}-{time.time_ns():x}"
        traced = request.verbosity >= 2 or self._options.log_level == "debug"
        self._context = Context(self.log, self._trace if traced else None, caller.gone)
        self._alone = False
        self._start: MountStart | None = None
        self._held = ExitStack()  # what must not leave the cache before all parts are open
        self._started = time.monotonic()
        about = {"target": self._target, "id": self._id, "source": str(self._location), "driver": self._driver}
        self.logger = open_logger(self._options.log_to, self._options.log_level, self.log, **about)

    def log(self, text: str) -> None:
        """To the caller's terminal while there is one, then to the log. From any thread."""
        if self._alone:
            self.logger.warning(text)
        else:
            self._caller.send(log=text)

    def _trace(self, text: str) -> None:
        """Trace an exchange with the registry, from any thread."""
        if self._request.verbosity >= 2 and not self._alone:
            self._caller.send(trace=text)
        self.logger.debug(text)

    def run(self) -> None:
        """Serve the mount. Raises PyerofsError as long as the caller is there to hear of it."""
        parts: list[ServedLayer] = []
        try:
            with self._held:
                self._open(parts)
            self._start = MountStart(parts, self._location, self._options, self.log, self.logger.debug)
            if self._resume:
                self._go_on(parts, self._resume)
            else:
                self._begin(parts)
        finally:
            if self._start:
                self._start.end()
            for part in parts:
                part.close()

    def _open(self, parts: list[ServedLayer]) -> None:
        """Add to `parts` what is served, in its order; also before an error what has been opened."""
        pieces = list(self._pieces())
        if len(pieces) > 1:
            _allow_files()
        opened: dict[int, ServedLayer] = {}

        def open_(number: int) -> None:
            piece = pieces[number]
            log = self.log if len(pieces) == 1 else partial(self._log_of, piece.layer)
            context = self._context.with_log(log)
            export = Export(piece.open(context), self._options.oci, context)
            if not self._resume and self._options.oci.prefetch != "none" and not isinstance(export.source, LocalSource):
                export.prefetch(export.source.storage.hot)  # while the device is attached and mounted
            opened[number] = ServedLayer(export, log, piece.role, piece.devices, piece.tree, self.logger.debug)

        try:
            for_each(range(len(pieces)), open_)
        finally:
            parts += (opened[number] for number in sorted(opened))

    def _pieces(self) -> Iterable[Piece]:
        oci = self._options.oci
        if self._location.is_file:
            local = LocalSource(self._location.path)
            if self._resume and local.identity != self._resume.record.identity:
                local.close()
                raise MountError(f"{self._location} is no longer the file that was mounted")
            yield Piece(lambda _: local)
        elif self._resume:
            was = self._resume.record
            layers = [(Layer.from_dict(part.origin), part.size) for part in was.parts]
            for part, open_ in zip(
                was.parts, reopen_layers(self._location, layers, oci, was.source, context=self._context), strict=True
            ):
                yield Piece(open_, part.layer, part.role)
        else:
            manifests = ManifestCache(chosen_directory(oci), self.log)
            try:
                planned = plan_layers(self._location, oci, context=self._context, manifests=manifests)
            except NotErofsError as ordinary:
                from ..source import converted_cache

                image = self._held.enter_context(
                    converted_cache.get_converted(self._location, ordinary, oci, self._have_converted)
                )
                planned = image.parts(self._location, oci, self._context)
            for chosen, open_ in planned:
                tree = choose_tree(chosen, self._options, str(self._location), self.log)
                yield Piece(open_, chosen.layer, chosen.role, chosen.devices, tree)

    def _have_converted(self, request: ConversionRequest) -> bool:
        """Ask the caller to convert: this process is to stay small, and lives as long as the mount."""
        self._caller.send(convert=request.to_json())
        return bool(self._caller.receive().get("converted"))

    def _log_of(self, layer: int, text: str) -> None:
        self.log(f"layer {layer}: {text}")

    # A new mount

    def _begin(self, parts: Sequence[ServedLayer]) -> None:
        if self._options.device and len(parts) > 1:
            raise UsageError(
                f"nbd.device={self._options.device} is one device, and the image needs {len(parts)}: "
                "leave it out, or choose a layer with oci.layer=N"
            )
        assert self._start is not None  # noqa: S101 - run() has made it
        self._start.begin()
        for_each(parts, lambda part: part.check(self._options))
        identifiers = {part: self._id + (f".{number}" if number else "") for number, part in enumerate(parts)}
        try:
            for_each(parts, lambda part: part.attach(self._driver, identifiers[part], self._options))
            record = self._record(parts)
            keeper = self._keeper(parts, record)
        except BaseException:
            for part in parts:
                if part.id:
                    part.attachment.abort()
            raise
        try:
            keeper.begin()
            self._caller.send(mount=_plan(parts, record).to_json())
            number = self._caller.receive().get("mounted")
            if not number:
                self._unmount_again(record)
                keeper.end()
                return
            for part in parts:
                part.attachment.mounted()
            keeper.mounted(str(number))
            self._start.mounted()
        except BaseException:
            keeper.end()
            raise
        self._caller.send(done=True)
        self._caller.close()
        self._go_alone()
        keeper.run()
        self._start.write()

    def _keeper(self, parts: Sequence[ServedLayer], record: Record) -> MountLifecycle:
        def stat(now: Record) -> dict[str, Any]:
            return snapshot([part.export for part in parts], now, self._started)

        assert self._start is not None  # noqa: S101 - run() has made it
        return MountLifecycle(
            parts, record, self._request, self._options, stat, self._start, self.log, self.logger.info
        )

    def _is_stack(self, parts: Sequence[ServedLayer]) -> bool:
        return self._options.upper is not None or len([part for part in parts if part.role != "device"]) > 1

    def _unmount_again(self, record: Record) -> None:
        """Unmount: the caller has hung up, and if it was killed, then perhaps after its mount(2)."""
        others = [other for other in read_all(dead=True) if other.id != record.id]
        while (found := find(self._target)) and found.source in (record.device, record.shown):
            if any(other.owns(found) for other in others):
                return  # it is a mount of the same image that was there before
            umount(self._target, MNT_DETACH | UMOUNT_NOFOLLOW)

    def _record(self, parts: Sequence[ServedLayer]) -> Record:
        request, secrets = self._request.without_secrets()
        source = parts[-1].export.source
        device = self._id if self._is_stack(parts) else parts[-1].attachment.path
        return Record(
            id=self._id,
            pid=os.getpid(),
            started=start_of(os.getpid()),
            target=self._target,
            source=source.name,
            driver=self._driver,
            device=device,
            shown=device if self._location.is_file else str(self._location),
            parts=tuple(part.record() for part in parts),
            identity=source.identity if isinstance(source, LocalSource) else "",
            request=request.to_json(),
            secrets=secrets,
        )

    # In the place of another worker

    def _go_on(self, parts: list[ServedLayer], resume: Resume) -> None:
        was, supervisor = resume.record, resume.supervisor
        assert self._caller.channel is not None  # noqa: S101 - it has just asked
        fds = self._caller.channel.take_fds()
        heart = fds.pop() if supervisor else -1
        sockets = [socket.socket(fileno=fd) for fd in fds]
        for part, known in list(zip(parts, was.parts, strict=True)):
            count = resume.sockets.get(known.id, 0)
            ours, sockets = sockets[:count], sockets[count:]
            try:
                part.adopt(known, ours, self._options.oci.connections)
            except MountError as e:
                if len(parts) == 1:
                    raise
                self.log(str(e))  # the others can do without it
                part.close()
                parts.remove(part)
        record = replace(was, restarts=resume.restarts)
        keeper = self._keeper(parts, record)
        if supervisor:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as f:
                f.write(resume.oom_score)  # not the supervisor's
            parts[-1].server.add(socket.socket(fileno=heart), handshake=False, monitor=True)
        keeper.go_on(self._caller.channel if supervisor else None, supervisor)
        self._caller.send(done=True)
        if not supervisor:
            self._caller.close()
        self._go_alone()
        keeper.run()

    def _go_alone(self) -> None:
        """Lets go of the caller's terminal and of all else that is its."""
        self._alone = True
        leave_terminal()


def _plan(parts: Sequence[ServedLayer], record: Record) -> MountPlan:
    paths = {part.layer: part.attachment.path for part in parts}
    layers = [
        PlannedMount(
            path=part.attachment.path,
            layer=part.layer,
            devices=[paths[number] for number in part.devices],
            names=part.role == "lower",
        )
        for part in parts
        if part.role != "device"
    ]
    return MountPlan(record.shown, record.directory if record.stacked else "", layers)


def _allow_files() -> None:
    """Each part takes a dozen, and the limit is often low for the sake of select(2), which is not used here."""
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, FILES)), most))


def _import_early() -> None:
    """Most mounts need these, and the caller is not ready yet."""
    import pyerofs.http.transport  # noqa: F401


def main() -> int:
    caller = Caller(Channel(begin()))
    if not caller.has_spoken():
        _import_early()
    message = caller.receive()
    if not message:
        return 1
    worker = None
    try:
        request = MountRequest.from_json(message)
        resume = Resume.from_json(message["resume"]) if "resume" in message else None
        os.environ.clear()
        os.environ.update(request.environment)
        os.chdir(request.directory)  # where relative paths in the options are meant
        worker = Worker(caller, request, resume)
        os.chdir("/")
        worker.run()
    except Exception as e:
        error = unexpected(e)
        caller.send(**to_json(error))
        if worker is not None and isinstance(error, InternalError):
            worker.logger.error(f"{error}\n{error.trace}")
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
