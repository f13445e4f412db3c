"""The options of a mount that are the kernel's: mount(8)'s flags, and EROFS's own. Pure values."""

from __future__ import annotations

import re

from ..errors import UsageError

# mount(2), <sys/mount.h>
MS_RDONLY = 1
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_SYNCHRONOUS = 1 << 4
MS_MANDLOCK = 1 << 6
MS_DIRSYNC = 1 << 7
MS_NOSYMFOLLOW = 1 << 8
MS_NOATIME = 1 << 10
MS_NODIRATIME = 1 << 11
MS_SILENT = 1 << 15
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

_ATIME = MS_NOATIME | MS_RELATIME | MS_STRICTATIME  # exclude one another: the last one wins
_DATA_MAX = 4095  # bytes; mount(2) cuts its data off at a page, without an error

# name: (flags that it sets, flags that it clears)
_FLAGS = {
    **dict.fromkeys(("defaults", "ro", "rw", "loop", "auto", "noauto", "nofail", "_netdev"), (0, 0)),
    **dict.fromkeys(("nouser", "nousers", "noowner", "nogroup"), (0, 0)),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "noatime": (MS_NOATIME, _ATIME),
    "atime": (0, MS_NOATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "relatime": (MS_RELATIME, _ATIME),
    "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, _ATIME),
    "nostrictatime": (0, MS_STRICTATIME),
    "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME),
    "iversion": (MS_I_VERSION, 0),
    "noiversion": (0, MS_I_VERSION),
    "mand": (MS_MANDLOCK, 0),
    "nomand": (0, MS_MANDLOCK),
    "nosymfollow": (MS_NOSYMFOLLOW, 0),
    "symfollow": (0, MS_NOSYMFOLLOW),
    "silent": (MS_SILENT, 0),
    "quiet": (MS_SILENT, 0),
    "loud": (0, MS_SILENT),
    "user": (MS_NOEXEC | MS_NOSUID | MS_NODEV, 0),
    "users": (MS_NOEXEC | MS_NOSUID | MS_NODEV, 0),
    "owner": (MS_NOSUID | MS_NODEV, 0),
    "group": (MS_NOSUID | MS_NODEV, 0),
}
# For mount(8), fstab and their kin; never for the kernel.
_USERSPACE = re.compile(r"comment=.*|x-.*|X-.*", re.DOTALL)
_PROPAGATION = re.compile(r"(?:make-)?r?(?:shared|slave|private|unbindable)")
_OTHER_OPERATIONS = ("bind", "rbind", "move")

# EROFS's own options with fixed values (the kernel's Documentation/filesystems/erofs.rst); None: it stands alone.
_EROFS_VALUES: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("user_xattr", "nouser_xattr", "acl", "noacl", "directio", "nodirectio", "inode_share"), (None,)),
    "cache_strategy": ("disabled", "readahead", "readaround"),
    "dax": (None, "always", "never"),
}
_EROFS_TEXTS = ("device", "domain_id", "fsid", "fsoffset")


def kernel_options(items: list[str], *, writable: bool = False) -> tuple[int, str, tuple[str, ...]]:
    """Return flags and data for mount(2), and warnings.

    `writable`: what is mounted can be written, and is unless "ro" says no.
    """
    flags = 0 if writable else MS_RDONLY
    data: list[str] = []
    refused = False
    for item in items:
        name, equals, value = item.partition("=")
        if name == "remount":
            raise UsageError("remount changes what is mounted: write `mount -o remount,OPTIONS TARGET`")
        if name in _OTHER_OPERATIONS or _PROPAGATION.fullmatch(name):
            raise UsageError(f"{name} is not a mount of a file system: use mount(8) for it")
        if _USERSPACE.fullmatch(item):
            continue
        if name in _FLAGS:
            if equals and name != "user":
                raise UsageError(f"the option {name} takes no value")
            on, off = _FLAGS[name]
            flags = flags & ~off | on
            if name in ("ro", "rw") and writable:
                flags = flags & ~MS_RDONLY | (MS_RDONLY if name == "ro" else 0)
            elif name in ("ro", "rw"):
                refused = name == "rw"
            continue
        _check_erofs(name, value if equals else None)
        if "," in item and not is_quoted(value):
            raise UsageError(f"the option {name!r} has a comma in its value, which the kernel cannot take")
        data.append(item)
    joined = ",".join(data)
    if len(joined.encode(errors="surrogatepass")) > _DATA_MAX:
        raise UsageError(f"the options for the kernel are longer than {_DATA_MAX} bytes")
    return flags, joined, ("EROFS is read-only: rw is ignored, mounting ro",) if refused else ()


def _check_erofs(name: str, value: str | None) -> None:
    if name in _EROFS_VALUES and value not in _EROFS_VALUES[name]:
        words = [name if word is None else f"{name}={word}" for word in _EROFS_VALUES[name]]
        raise UsageError(f"the option {name} is written {' or '.join(words)}")
    if name in _EROFS_TEXTS and not value:
        raise UsageError(f"the option {name} needs a value: {name}=...")
    if name == "fsoffset" and not re.fullmatch(r"[0-9]{1,19}", value or ""):
        raise UsageError(f"fsoffset={value!r}: a number of bytes is needed")


def is_quoted(value: str) -> bool:
    return len(value) >= 2 and value[0] == value[-1] == '"' and '"' not in value[1:-1]
