"""Records: what each mount's daemon says of itself, for `list`, `umount` and `reattach`.

JSON in /run/pyerofs, never a secret: a new daemon has its secrets from its predecessor, or else from where credentials
are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import UnavailableError
from ..files import atomic_write
from ..kernel.nbd_node import backend_of

if TYPE_CHECKING:
    from ..erofs.compose import Role
    from ..kernel.mountpoint import MountInfo

DIRECTORY = "/run/pyerofs"
VERSION = 3


def make_directory() -> str:
    """Make the directory of the records and of what belongs to them. Raises OSError."""
    os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
    return DIRECTORY


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        return f.read().strip()


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One blob of the mount.

    `id` is its device's backend identifier. `size` in bytes, `device` what the blob is attached as, `how` it is
    attached: netlink, ioctl or fuse; `verity`: the dm-verity device over that, "" for none; `role` as in
    erofs/compose.py;
    `origin`: the layer as its manifest describes it, for a new daemon.
    """

    id: str
    device: str
    size: int
    digest: str = ""
    layer: int = -1
    role: Role = "lower"
    how: str = ""
    verity: str = ""
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """What a mount's daemon says of itself.

    `pid`: the daemon, `supervisor`: the process that watches it, 0 for none; with each its start in clock ticks since
    boot, which tells it from another process with the same number. `device` is what was mounted:
    a part's device, or the record's `id` for a stack. `request`: what a new daemon is asked, without secrets
    (`secrets`: there were some). `restarts`: how often a daemon has been replaced. `identity`: of a local file.
    `number` (major:minor) and `shown` (its source): of what was mounted, as mountinfo has them; "" where it is not
    known.
    """

    id: str
    pid: int
    started: int
    target: str
    source: str
    driver: str
    device: str
    parts: tuple[LayerRecord, ...]
    supervisor: int = 0
    supervisor_started: int = 0
    restarts: int = 0
    identity: str = ""
    number: str = ""
    shown: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    secrets: bool = False
    boot: str = field(default_factory=boot_id)
    version: int = VERSION

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Read what as_dict() has given, by way of JSON. Raises TypeError, KeyError for what is no record."""
        return cls(**{**values, "parts": tuple(LayerRecord(**part) for part in values["parts"])})

    @property
    def stacked(self) -> bool:
        """Whether it is an overlay of its parts that is mounted."""
        return self.device == self.id

    @property
    def digest(self) -> str:
        """Of what is mounted by itself; "" for a stack."""
        return "" if self.stacked else self.parts[-1].digest

    @property
    def layer(self) -> int:
        """As digest; -1 for a stack."""
        return -1 if self.stacked else self.parts[-1].layer

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    @property
    def how(self) -> str:
        """How the parts are attached; netlink when all of them are."""
        return next((part.how for part in self.parts if part.how != "netlink"), "netlink")

    @property
    def paths(self) -> frozenset[str]:
        """Every device of it, and what is mounted."""
        return frozenset(
            filter(None, (self.device, *(path for part in self.parts for path in (part.device, part.verity))))
        )

    def owns(self, mount: MountInfo) -> bool:
        """Whether this is a mount of it, or a bind mount of that."""
        if mount.source in self.paths:
            return True
        if self.number:
            return (mount.device, mount.source) == (self.number, self.shown)
        return self.device.startswith("/dev/") and mount.device == _number_of(self.device)

    @property
    def directory(self) -> str:
        """An empty directory, for a stack to be made in."""
        return os.path.join(DIRECTORY, f"{self.id}.d")

    @property
    def path(self) -> str:
        return os.path.join(DIRECTORY, f"{self.id}.json")

    @property
    def control(self) -> str:
        """The path of the daemon's control socket."""
        return os.path.join(DIRECTORY, f"{self.id}.sock")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def write(self) -> None:
        """Atomic, mode 0600. Raises UnavailableError."""
        try:
            make_directory()
            if self.stacked:
                os.makedirs(self.directory, mode=0o700, exist_ok=True)
            atomic_write(self.path, json.dumps(asdict(self)).encode())
        except OSError as e:
            raise UnavailableError(f"cannot write the record {self.path}: {e.strerror}") from None

    def remove(self) -> None:
        """With all that belongs to it."""
        for path in (self.path, self.control):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.directory)

    def alive(self) -> bool:
        """Whether the daemon is there."""
        return self.started == start_of(self.pid)

    def attached(self) -> bool:
        """Whether some device of it is still its own, so that it can have a new daemon."""
        return any(part.how == "netlink" and backend_of(part.device) == part.id for part in self.parts)

    def supervised(self) -> bool:
        return self.supervisor > 0 and self.supervisor_started == start_of(self.supervisor)


def _number_of(device: str) -> str:
    try:
        number = os.stat(device).st_rdev
    except OSError:
        return ""
    return f"{os.major(number)}:{os.minor(number)}"


def start_of(pid: int) -> int:
    """Return the process's start in clock ticks since boot (proc(5), stat, field 22); 0 for none, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            fields = f.read().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


def read(identifier: str) -> Record | None:
    """Return the record with this id; None where there is none, or one that cannot be read or has another version."""
    try:
        with open(os.path.join(DIRECTORY, f"{identifier}.json"), encoding="utf-8") as f:
            values = json.load(f)
        return Record.from_dict(values) if values["version"] == VERSION else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_all(*, dead: bool = False) -> list[Record]:
    """Return every record of this boot whose daemon or supervisor lives, by target.

    With `dead` the others too, those of earlier boots included. What cannot be read or has another version is left out.
    """
    try:
        names = os.listdir(DIRECTORY)
    except OSError:
        return []
    found = [read(name.removesuffix(".json")) for name in names if name.endswith(".json")]
    records = [r for r in found if r is not None and (dead or r.alive() or r.supervised())]
    return sorted(records, key=lambda r: r.target)
