"""Files that others name, files that are replaced as a whole, and where a user's own are. Any thread.

A name may lead to a FIFO, which would hold up its opener until another process comes, or to a device that does
something as it is opened: open(path, opener=regular) gives what such a name is worth, an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_NULL = os.makedev(1, 3)  # /dev/null: "no such configuration", in words that many programs understand
_KINDS = {
    stat.S_IFIFO: "a FIFO or pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def regular(path: str, flags: int) -> int:
    """Open for open() without ever blocking. Raises OSError for all but a regular file (and /dev/null)."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        check_regular(os.fstat(descriptor), path)
        os.set_blocking(descriptor, True)  # it was for the opening alone
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(found: os.stat_result, path: str) -> None:
    """Raise OSError unless what was found at `path` is a regular file (or /dev/null)."""
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if kind != stat.S_IFREG and not (kind == stat.S_IFCHR and found.st_rdev == _NULL):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a regular file", path)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`. Raises OSError."""
    while data:
        data = data[os.write(fd, data) :]


def atomic_write(path: str, data: bytes, *, durable: bool = False, mode: int = 0o600) -> None:
    """Put `data` at `path`, with this mode: whole or not at all, as others see it, and what they had open stays theirs.

    `durable`: whole or not at all after a crash of the machine too; which of both, the directory decides, which is the
    caller's to sync. Raises OSError, and then nothing is left behind. Any number of threads and processes at once.
    """
    temporary = f"{path}.{os.urandom(6).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, data)
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def remove_directories(path: str) -> None:
    """Remove all directories in the directory `path`, if that is there, with what is in them. Raises OSError."""
    try:
        with os.scandir(path) as entries:
            found = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    if found:
        import shutil  # hardly ever

        for each in found:
            shutil.rmtree(each)


def home(environ: Mapping[str, str], uid: int) -> str | None:
    """Return the user's directory: $HOME, else what the system's list of users has; None where that has none."""
    named = environ.get("HOME", "")
    if os.path.isabs(named):
        return named
    import pwd  # a unit or an fstab mount may have no HOME

    try:
        listed = pwd.getpwuid(uid).pw_dir
    except KeyError:
        return None
    return listed if os.path.isabs(listed) else None


def xdg(environ: Mapping[str, str], uid: int, variable: str, default: str) -> str | None:
    """Return the directory in $XDG_..._HOME, or `default` below home().

    A relative one is ignored, as the XDG Base Directory Specification wants it.
    """
    named = environ.get(variable, "")
    if os.path.isabs(named):
        return named
    own = home(environ, uid)
    return os.path.join(own, default) if own else None
