"""Several EROFS filesystems as one: mounted out of sight, stacked with overlayfs, and only then shown.

All of it is put together in a mount namespace of a thread of its own: mount(2) for each layer and for the stack, with
names relative to the thread's working directory, so that the option string is short enough for any number of layers
that overlayfs takes (and no kernel need know `lowerdir+`). Then the stack alone is brought over with open_tree(2) and
move_mount(2). The namespace ends with the thread, however that ends; overlayfs holds the layers by itself, and lets go
of them when it is unmounted, by whomever.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from ..config.mount_flags import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_SILENT
from ..errors import MountError, PyerofsError, UnavailableError, UsageError
from .mountpoint import check, libc, mount

_CLONE_NEWNS = 0x20000  # linux/sched.h
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_AT_FDCWD = -100
_OPEN_TREE, _MOVE_MOUNT = 428, 429  # the same on every architecture but alpha
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_STACK = "stack"  # the name of the overlay's directory among those of the layers


class Lower(NamedTuple):
    """What one filesystem is mounted from.

    `data`: its options, `devices`: what it needs beside its path; `names`: False for one that only lends its files to
    those above it; `label`: for messages.
    """

    path: str
    label: str
    data: str = ""
    devices: Sequence[str] = ()
    names: bool = True


class Upper(NamedTuple):
    """Where the changes go: absolute directories of one filesystem."""

    upperdir: str
    workdir: str


def check_upper(upper: Upper) -> None:
    """Raise UsageError for directories with which the kernel would refuse the mount, or ruin something."""
    found = []
    for name, path in (("oci.upperdir", upper.upperdir), ("oci.workdir", upper.workdir)):
        try:
            found.append((os.stat(path), os.path.realpath(path)))
            if not os.path.isdir(path):
                raise UsageError(f"{name}={path}: it is not a directory")
        except OSError as e:
            raise UsageError(f"{name}={path}: {e.strerror}") from None
    (one, first), (two, second) = found
    if one.st_dev != two.st_dev:
        raise UsageError(f"oci.upperdir and oci.workdir must be on one filesystem: {first} and {second} are not")
    if os.path.commonpath((first, second)) in (first, second):
        raise UsageError(f"oci.upperdir and oci.workdir must not lie in one another: {first} and {second}")


def mount_stack(
    layers: Sequence[Lower], name: str, target: str, directory: str, flags: int, upper: Upper | None = None
) -> None:
    """Mounts the layers (base first) as one filesystem at `target`, `name` being its source in mountinfo.

    `directory`: an empty one, used as a place; nothing is left there. `flags` as for mount(2). Raises UsageError,
    UnavailableError, MountError; then nothing is mounted. Any thread.
    """
    builder = _Builder(layers, name, directory, flags, upper)
    tree = builder.wait()
    try:
        check(libc().syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH))
    except OSError as e:
        raise MountError(f"cannot mount on {target}: {e.strerror}") from None
    finally:
        os.close(tree)


class _Builder(threading.Thread):
    """The thread in whose namespace the stack is made."""

    def __init__(self, layers: Sequence[Lower], name: str, directory: str, flags: int, upper: Upper | None):
        super().__init__(name="pyerofs-stack", daemon=True)
        self._layers = layers
        self._source = name
        self._directory = directory
        self._flags = flags
        self._upper = upper
        self._held: dict[str, int] = {}  # descriptors of paths
        self._lock = threading.Lock()
        self._abandoned = False
        self._tree = -1
        self._error: Exception | None = None

    def wait(self) -> int:
        """Return a descriptor of the stack, from now on the caller's.

        Interrupted, it leaves the thread to itself: that ends when the reads that it waits for do.
        """
        self.start()
        try:
            self.join()
        except BaseException:
            with self._lock:
                self._abandoned = True
                if self._tree >= 0:
                    os.close(self._tree)
            raise
        if self._error is not None:
            raise self._error
        return self._tree

    def run(self) -> None:
        try:
            with ExitStack() as stack:
                self._find(stack)
                self._step_aside()
                tree = self._build()
        except Exception as e:
            self._error = e
            return
        with self._lock:
            if self._abandoned:
                os.close(tree)
            else:
                self._tree = tree

    def _find(self, stack: ExitStack) -> None:
        """Open what the layers are mounted from, as it is seen outside.

        A file reached through a mount of the namespace to come would not keep the real one busy.
        """
        for path in (path for layer in self._layers for path in (layer.path, *layer.devices)):
            if path not in self._held:
                try:
                    self._held[path] = fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                except OSError as e:
                    raise MountError(f"cannot mount {path}: {e.strerror}") from None
                stack.callback(os.close, fd)

    def _through(self, path: str) -> str:
        return f"/proc/self/fd/{self._held[path]}"

    def _build(self) -> int:
        silent = self._flags & MS_SILENT
        lowers: list[str] = []
        lenders: list[str] = []
        for number, layer in enumerate(self._layers):
            place = str(number)
            os.mkdir(place)
            data = ",".join(filter(None, [layer.data, *(f"device={self._through(path)}" for path in layer.devices)]))
            try:
                mount(self._through(layer.path), place, "erofs", MS_RDONLY | silent, data, shown=layer.path)
            except PyerofsError as e:
                raise type(e)(f"{layer.label}: {e}") from None
            (lowers if layer.names else lenders).insert(0, place)
        os.mkdir(_STACK)
        options = [f"lowerdir={'::'.join([':'.join(lowers), *lenders])}"]
        if lenders:
            options.append("metacopy=on")
        if self._upper:
            options += (f"{name}={_escaped(path)}" for name, path in self._upper._asdict().items())
        self._mount_overlay(",".join(options), bool(lenders))
        try:
            return check(libc().syscall(_OPEN_TREE, _AT_FDCWD, _STACK.encode(), _OPEN_TREE_CLONE | os.O_CLOEXEC))
        except OSError as e:
            raise UnavailableError(
                f"a stack of layers needs Linux 5.2 or newer, and open_tree(2): {e.strerror}"
            ) from None

    def _step_aside(self) -> None:
        """Into a mount namespace, a root that propagates nothing, and a working directory of its own."""
        import ctypes

        try:
            check(libc().unshare(_CLONE_NEWNS))
            check(libc().mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
            flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
            check(libc().mount(b"pyerofs", os.fsencode(self._directory), b"tmpfs", flags, b"mode=700"))
            os.chdir(self._directory)
        except OSError as e:
            if e.errno == errno.EPERM:
                raise UsageError("a stack of layers needs CAP_SYS_ADMIN, for a mount namespace of its own") from None
            raise UnavailableError(f"cannot prepare a stack of layers: {e.strerror}") from None

    def _mount_overlay(self, data: str, lends: bool) -> None:
        try:
            mount(self._source, _STACK, "overlay", self._flags, data)
        except UnavailableError:
            raise
        except PyerofsError as e:
            if not isinstance(e.__cause__, OSError):
                raise
            reason = e.__cause__.strerror
            hint = " (does it support the filesystem of oci.upperdir?)" if self._upper else ""
            if lends and e.__cause__.errno == errno.EINVAL:
                hint = " (one of them only lends its data to others, which needs Linux 6.5 or newer)"
            raise MountError(f"overlayfs refused to stack the layers: {reason}{hint}; see `dmesg`") from None


def _escaped(path: str) -> str:
    """As overlayfs reads its options: a colon ends a layer's name, a comma the option."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
