"""Records: what each mount's daemon says of itself, for `list` and `umount`. JSON in /run/pyerofs, never a secret."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass

from .errors import SystemFailure

DIRECTORY = "/run/pyerofs"
VERSION = 1


def make_directory() -> str:
    """The directory of the records, and of what belongs to them. Raises OSError."""
    os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
    return DIRECTORY


@dataclass(frozen=True, slots=True)
class Record:
    """`id` is also the device's backend identifier; `started` is the daemon's start in clock ticks since boot, which
    tells it from another process with the same `pid`. `size` in bytes. `device` is what was mounted."""

    id: str
    pid: int
    started: int
    target: str
    source: str
    driver: str
    device: str
    size: int
    digest: str = ""
    layer: int = -1
    version: int = VERSION

    @property
    def path(self) -> str:
        return os.path.join(DIRECTORY, f"{self.id}.json")

    def write(self) -> None:
        """Atomic, mode 0600. Raises SystemFailure."""
        try:
            make_directory()
            temporary = f"{self.path}.new"
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "w", encoding="utf-8") as f:
                json.dump(asdict(self), f)
            os.rename(temporary, self.path)
        except OSError as e:
            raise SystemFailure(f"cannot write the record {self.path}: {e.strerror}") from None

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def alive(self) -> bool:
        return self.started == start_of(self.pid)


def start_of(pid: int) -> int:
    """The process's start in clock ticks since boot (proc(5), stat, field 22); 0 when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            return int(f.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def read_all() -> list[Record]:
    """Every record whose daemon lives, by target. What cannot be read or has another version is left out."""
    records = []
    try:
        names = os.listdir(DIRECTORY)
    except OSError:
        return []
    for name in names:
        if name.endswith(".json"):
            try:
                with open(os.path.join(DIRECTORY, name), encoding="utf-8") as f:
                    values = json.load(f)
                if values["version"] == VERSION:
                    records.append(Record(**values))
            except (OSError, ValueError, TypeError, KeyError):
                continue
    return sorted((r for r in records if r.alive()), key=lambda r: r.target)
