"""The Node service: volumes of images, mounted where kubelet wants them.

A call for a volume of which another one is under way is ABORTED, as the specification has it: kubelet asks again. The
mounts are all there is to know, so a driver that starts anew has lost nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..config.kept import check_whole
from ..config.options import parse_mount_options
from ..daemon.record import Record
from ..errors import AuthError, MountError, NotFoundError, RegistryError, UnavailableError, UsageError
from ..grpc.status import Code, RpcError
from ..kernel import mountpoint
from ..mounting.mount import mount, unmount
from ..mounting.present import record_of
from ..oci.location import Location
from .credentials import credential_options
from .messages import BYTES, INODES

_EPHEMERAL = "csi.storage.k8s.io/"  # of what kubelet adds to a volume's attributes
_ATTRIBUTES = "there are image, options and type"


class NodeService:
    """`settle`: has the daemons of a mount that has just been made; `report` takes lines for the log. Any thread."""

    def __init__(self, report: Callable[[str], None], settle: Callable[[Record], None] = lambda record: None) -> None:
        self._report = report
        self._settle = settle
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def _alone(self, target: str) -> Iterator[None]:
        with self._lock:
            if target in self._busy:
                raise RpcError(Code.ABORTED, f"another call for {target} is under way")
            self._busy.add(target)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(target)

    def publish(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """NodePublishVolume. Raises RpcError."""
        _need(request, "volume_id")
        target = _path(request, "target_path")
        capability = request["volume_capability"]
        if capability is None or (capability["block"] is None and capability["mount"] is None):
            raise RpcError(Code.INVALID_ARGUMENT, "the request has no volume_capability")
        if capability["block"] is not None:
            raise RpcError(Code.INVALID_ARGUMENT, "an image is no block device: volumeMode must be Filesystem")
        image, options, fstype = _attributes(request["volume_context"])
        with self._alone(target), _as_statuses():
            location = Location.parse(image)
            check_whole(parse_mount_options(options, fstype))
            secret = credential_options(image, request["secrets"])
            if self._is_there(target, str(location)):
                return {}
            made = _make_target(target)
            try:
                mount(str(location), target, [*options, *secret, "ro"], fstype=fstype, report=self._report)
                self._settle_in(target)
            except BaseException:
                if made:
                    with contextlib.suppress(OSError):
                        os.rmdir(target)
                raise
            self._report(f"{target}: {location} is mounted")
        return {}

    def _settle_in(self, target: str) -> None:
        found = mountpoint.find(os.path.realpath(target))
        record = record_of(found) if found else None
        try:
            if record:
                self._settle(record)
        except BaseException:
            unmount(target, lazy=True)
            raise

    def _is_there(self, target: str, source: str) -> bool:
        """Whether the volume is mounted there already; what is dead there is cleared away. Raises RpcError."""
        while (found := mountpoint.find(os.path.realpath(target))) is not None:
            record = record_of(found)
            if record is None:
                raise RpcError(Code.FAILED_PRECONDITION, f"{target}: a {found.fstype} filesystem is mounted there")
            if record.alive() or record.supervised():
                if record.source != source:
                    raise RpcError(Code.ALREADY_EXISTS, f"{target}: {record.source} is mounted there")
                return True
            unmount(target, lazy=True)
        return False

    def unpublish(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """NodeUnpublishVolume: unmounts, and removes the target. Raises RpcError."""
        _need(request, "volume_id")
        target = _path(request, "target_path")
        with self._alone(target), _as_statuses():
            while (found := mountpoint.find(os.path.realpath(target))) is not None:
                if record_of(found) is None and found.fstype not in ("erofs", "overlay"):
                    raise RpcError(Code.FAILED_PRECONDITION, f"{target}: a {found.fstype} filesystem is mounted there")
                unmount(target)
                self._report(f"{target}: unmounted")
            try:
                os.rmdir(target)
            except OSError as e:
                if e.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise MountError(f"cannot remove {target}: {e.strerror}") from None
        return {}

    def stats(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """NodeGetVolumeStats. Raises RpcError."""
        _need(request, "volume_id")
        path = _path(request, "volume_path")
        if mountpoint.find(os.path.realpath(path)) is None:
            raise RpcError(Code.NOT_FOUND, f"no volume is mounted at {path}")
        try:
            found = os.statvfs(path)
        except OSError as e:
            raise RpcError(Code.INTERNAL, f"{path}: {e.strerror}") from None
        total, available = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        space = {"total": total, "available": available, "used": total - available, "unit": BYTES}
        nodes = {"total": found.f_files, "available": found.f_favail, "unit": INODES}
        return {"usage": [space, {**nodes, "used": max(0, found.f_files - found.f_ffree)}]}


def _need(request: Mapping[str, Any], name: str) -> str:
    value = request[name]
    if not isinstance(value, str) or not value:
        raise RpcError(Code.INVALID_ARGUMENT, f"the request has no {name}")
    return value


def _path(request: Mapping[str, Any], name: str) -> str:
    path = _need(request, name)
    if not os.path.isabs(path) or "\0" in path:
        raise RpcError(Code.INVALID_ARGUMENT, f"{name} is not an absolute path")
    return path


def _attributes(context: Mapping[str, str]) -> tuple[str, list[str], str]:
    """Return image, options and type of a volume's attributes. Raises RpcError."""
    given = {name: value for name, value in context.items() if not name.startswith(_EPHEMERAL)}
    unknown = sorted(set(given) - {"image", "options", "type", "storage.kubernetes.io/csiProvisionerIdentity"})
    if unknown:
        raise RpcError(Code.INVALID_ARGUMENT, f"unknown volumeAttributes {unknown[0][:64]!r}: {_ATTRIBUTES}")
    if not given.get("image"):
        raise RpcError(Code.INVALID_ARGUMENT, "volumeAttributes have no image")
    options = given.get("options", "")
    return given["image"], [options] if options else [], given.get("type") or "erofs"


def _make_target(target: str) -> bool:
    """Whether it was not there. Kubelet makes the directory above it."""
    try:
        os.mkdir(target, mode=0o750)
    except FileExistsError:
        return False
    except OSError as e:
        raise MountError(f"cannot make {target}: {e.strerror}") from None
    return True


@contextlib.contextmanager
def _as_statuses() -> Iterator[None]:
    """Raise what goes wrong as gRPC's statuses, for kubelet's events."""
    try:
        yield
    except UsageError as e:
        raise RpcError(Code.INVALID_ARGUMENT, str(e)) from None
    except NotFoundError as e:
        raise RpcError(Code.NOT_FOUND, str(e)) from None
    except AuthError as e:
        raise RpcError(Code.UNAUTHENTICATED, str(e)) from None
    except RegistryError as e:
        raise RpcError(Code.UNAVAILABLE if e.temporary else Code.INTERNAL, str(e)) from None
    except UnavailableError as e:
        raise RpcError(Code.FAILED_PRECONDITION, str(e)) from None
