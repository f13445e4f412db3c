"""The config.json of a bundle: OCI runtime spec, "Linux Container Configuration", out of an image's config.

OCI image spec, "Conversion to OCI Runtime Configuration". What an image says nothing of is as `runc spec` has it, but
for the capabilities, which are those that container engines give: with fewer, many images do not start. Pure functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ImageError, UsageError
from .users import ContainerUser

VERSION = "1.0.2"
IMAGE = "org.erofs.pyerofs.image"  # annotation: what the bundle was made of, by which a bundle of ours is known
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip
_MOUNTS = (
    ("/proc", "proc", "proc", ()),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")),
)
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
)  # fmt: skip
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def command_of(settings: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Return what is started: the entrypoint, and `given`, or the image's command. Raises ImageError, UsageError."""
    entrypoint, command = (_strings(settings, key) for key in ("Entrypoint", "Cmd"))
    found = [*entrypoint, *(given or command)]
    if not found:
        raise UsageError("the image names no command: write one behind DIR")
    return found


def make_spec(
    settings: Mapping[str, Any],
    command: Sequence[str],
    user: ContainerUser,
    *,
    hostname: str,
    annotations: Mapping[str, str],
    read_only: bool,
    terminal: bool,
) -> dict[str, Any]:
    """Return the document. `settings`: of the image's config. Raises ImageError for those that cannot be."""
    env = _strings(settings, "Env")
    names = {entry.partition("=")[0] for entry in env}
    more = [] if "PATH" in names else [_PATH]
    more += [] if "HOME" in names or not user.home else [f"HOME={user.home}"]
    more += ["TERM=xterm"] if terminal and "TERM" not in names else []
    cwd = settings.get("WorkingDir") or "/"
    if not isinstance(cwd, str):
        raise ImageError("the image's config has a WorkingDir that is no string")
    capabilities = [f"CAP_{name}" for name in _CAPABILITIES]
    who: dict[str, Any] = {"uid": user.uid, "gid": user.gid}
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": terminal,
            "user": {**who, "additionalGids": user.groups} if user.groups else who,
            "args": list(command),
            "env": [*more, *env],
            "cwd": cwd if cwd.startswith("/") else f"/{cwd}",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": read_only},
        "hostname": hostname,
        "mounts": [
            {"destination": where, "type": kind, "source": source, **({"options": list(options)} if options else {})}
            for where, kind, source, options in _MOUNTS
        ],
        "annotations": {**_annotations(settings), **annotations},
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READONLY),
        },
    }


def _annotations(settings: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    if isinstance(signal := settings.get("StopSignal"), str):
        found["org.opencontainers.image.stopSignal"] = signal
    if isinstance(ports := settings.get("ExposedPorts"), dict) and ports:
        found["org.opencontainers.image.exposedPorts"] = ",".join(sorted(ports))
    labels = settings.get("Labels")
    if isinstance(labels, dict):  # they go before what the other fields say
        found |= {key: value for key, value in labels.items() if key and isinstance(value, str)}
    return found


def _strings(settings: Mapping[str, Any], key: str) -> list[str]:
    found = settings.get(key) or []
    if not isinstance(found, list) or not all(isinstance(entry, str) and "\0" not in entry for entry in found):
        raise ImageError(f"the image's config has a {key} that is no list of strings")
    return found


def is_ours(config: bytes) -> bool:
    """Whether a config.json is one that was made here."""
    try:
        return IMAGE in json.loads(config)["annotations"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
