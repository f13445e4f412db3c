"""Volumes of images: what is known of each, and which containers have it mounted.

DIRECTORY/NAME.json         a volume: image, options, type
RUN/NAME/                   where it is mounted
RUN/NAME.json               the containers that have it, of this boot
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..config.kept import kept_options
from ..errors import UnavailableError, UsageError
from ..files import atomic_write
from ..kernel import mountpoint
from ..mounting.mount import mount, unmount
from ..mounting.present import record_of
from ..oci.location import Location

DIRECTORY = "/var/lib/pyerofs/volumes"
RUN = "/run/pyerofs-volumes"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,199}")
_OPTIONS = "there are image=REFERENCE, o=OPTIONS and type=erofs.nbd or erofs.fuse"


@dataclass(frozen=True, slots=True)
class Volume:
    """`image` as the user calls it; `options` of its mount."""

    name: str
    image: str
    options: list[str]
    fstype: str


class Volumes:
    """Those of one plugin. Any number of threads; of processes, one. `report` gets lines for the log."""

    def __init__(self, report: Callable[[str], None], directory: str = DIRECTORY, run: str = RUN) -> None:
        self._report = report
        self._directory = os.path.abspath(directory)
        self._run = os.path.abspath(run)
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            os.makedirs(self._run, mode=0o711, exist_ok=True)
        except OSError as e:
            raise UnavailableError(f"{e.filename}: {e.strerror}") from None

    def create(self, name: str, given: Mapping[str, Any]) -> None:
        """Make a volume; the same again is none. Nothing is asked of a registry. Raises UsageError."""
        volume = _volume(name, given)
        with self._locks[name]:
            there = self._read(name)
            if there is not None and there != volume:
                raise UsageError(f"there is a volume {name} of {there.image} already")
            atomic_write(self._file(name), json.dumps(asdict(volume)).encode(), durable=True)

    def find(self, name: str) -> Volume:
        """Raise UsageError where there is none."""
        found = self._read(name)
        if found is None:
            raise UsageError(f"there is no volume {name[:200]!r}")
        return found

    def all(self) -> list[Volume]:
        names = sorted(name.removesuffix(".json") for name in os.listdir(self._directory) if name.endswith(".json"))
        return [volume for name in names if (volume := self._read(name))]

    def mounted_at(self, name: str) -> str:
        """Return where it is mounted; "" where it is not."""
        target = self._target(name)
        return target if mountpoint.find(target) else ""

    def mount(self, name: str, container: str) -> str:
        """Mount it for one more container, and return where. Raises PyerofsError."""
        with self._locks[name]:
            volume = self.find(name)
            target = self._target(name)
            users = self._users(name)
            self._drop_dead(target)
            if not mountpoint.find(target):
                os.makedirs(target, mode=0o755, exist_ok=True)
                options = [*volume.options, "ro"]
                mount(volume.image, target, options, fstype=volume.fstype, report=self._report)
            self._write_users(name, users | {container})
            return target

    def _drop_dead(self, target: str) -> None:
        while (found := mountpoint.find(target)) is not None:
            record = record_of(found)
            if record is not None and (record.alive() or record.supervised()):
                return
            unmount(target, lazy=True)

    def unmount(self, name: str, container: str) -> None:
        """Note that a container has it no more; with the last one it is unmounted. Raises UsageError, MountError."""
        with self._locks[name]:
            self.find(name)
            users = self._users(name) - {container}
            target = self._target(name)
            if not users and mountpoint.find(target):
                unmount(target)
            self._write_users(name, users)
            if not users:
                with contextlib.suppress(OSError):
                    os.rmdir(target)

    def remove(self, name: str) -> None:
        """Forget it. Raises UsageError where a container has it."""
        with self._locks[name]:
            self.find(name)
            if users := self._users(name):
                raise UsageError(f"volume {name} is in use by {len(users)} containers")
            target = self._target(name)
            if mountpoint.find(target):
                unmount(target)
            os.unlink(self._file(name))
            for drop, path in ((os.unlink, f"{target}.json"), (os.rmdir, target)):
                with contextlib.suppress(OSError):
                    drop(path)

    def _file(self, name: str) -> str:
        return os.path.join(self._directory, f"{name}.json")

    def _target(self, name: str) -> str:
        return os.path.join(os.path.realpath(self._run), check_name(name))

    def _read(self, name: str) -> Volume | None:
        try:
            with open(self._file(check_name(name)), encoding="utf-8") as file:
                return Volume(**json.load(file))
        except (OSError, ValueError, TypeError):
            return None

    def _users(self, name: str) -> set[str]:
        try:
            with open(f"{self._target(name)}.json", encoding="utf-8") as file:
                return set(json.load(file))
        except (OSError, ValueError, TypeError):
            return set()

    def _write_users(self, name: str, users: set[str]) -> None:
        atomic_write(f"{self._target(name)}.json", json.dumps(sorted(users)).encode())


def check_name(name: str) -> str:
    """Raise UsageError for what is no volume's name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:200]!r} is not a volume's name: letters, digits, '_', '.' and '-'")
    return name


def _volume(name: str, given: Mapping[str, Any]) -> Volume:
    texts = {key: value for key, value in given.items() if isinstance(value, str)}
    unknown = sorted(set(given) - {"image", "o", "type"}) or sorted(set(given) - set(texts))
    if unknown:
        raise UsageError(f"unknown option {unknown[0][:64]!r}: {_OPTIONS}")
    if not texts.get("image"):
        raise UsageError(f"a volume needs an image: {_OPTIONS}")
    Location.parse(texts["image"])
    fstype = texts.get("type", "erofs")
    options = kept_options([texts["o"]] if texts.get("o") else [], fstype)
    return Volume(check_name(name), texts["image"], options, fstype)
