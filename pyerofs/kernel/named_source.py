"""mount(2) of a device or file under a name of its own: findmnt(8), df(1) and `mount -a` show and compare the name.

The kernel keeps a source as the text that it was given, and looks the text up as a path. So it is given a relative
one, in a filesystem that nobody else sees, where that path is a symbolic link to what is to be mounted. Nothing of it
is left, however the process ends.
"""

from __future__ import annotations

import os
import threading

from .mountpoint import check, libc, mount

_CLONE_FS = 0x200  # linux/sched.h
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture but alpha
_FSCONFIG_CMD_CREATE = 6
_NAME_MAX, _PATH_MAX = 255, 4000  # bytes, of a component and of all


def mount_named(name: str, path: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """Mount `path` at `target`, with `name` as its source in mountinfo.

    Where the kernel (before 5.2) or the name does not allow that, it is `path` itself. Raises as mount().
    """
    if name == path or not _is_usable(name):
        mount(path, target, fstype, flags, data)
        return
    mounter = _Mounter(name, path, target, fstype, flags, data)
    mounter.start()
    try:
        mounter.join()
    except BaseException:
        mounter.join()  # it ends when its reads do: nothing is to be mounted after the caller has heard of a failure
        raise
    if mounter.error is not None:
        raise mounter.error


def _is_usable(name: str) -> bool:
    parts = os.fsencode(name).split(b"/")
    return (
        bool(parts[0])
        and bool(parts[-1])
        and not {b".", b".."} & set(parts)
        and max(map(len, parts)) <= _NAME_MAX
        and len(name) <= _PATH_MAX
        and "\0" not in name
    )


class _Mounter(threading.Thread):
    """A thread, for the sake of a working directory of its own."""

    def __init__(self, name: str, path: str, target: str, fstype: str, flags: int, data: str):
        super().__init__(name="pyerofs-mount", daemon=True)
        self._name, self._path = name, path
        self._target, self._fstype, self._flags, self._data = target, fstype, flags, data
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            source = self._path
            try:
                check(libc().unshare(_CLONE_FS))
                self._link()
                source = self._name
            except OSError:
                pass
            mount(source, self._target, self._fstype, self._flags, self._data, shown=self._path)
        except Exception as error:
            self.error = error

    def _link(self) -> None:
        """Make the working directory one in which the name leads to the path. Raises OSError."""
        call = libc().syscall
        context = check(call(_FSOPEN, b"tmpfs", 1))
        try:
            check(call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
            place = check(call(_FSMOUNT, context, 1, 0))
        finally:
            os.close(context)
        try:
            os.fchdir(place)
        finally:
            os.close(place)
        if directory := os.path.dirname(self._name):
            os.makedirs(directory)
        os.symlink(self._path, self._name)
