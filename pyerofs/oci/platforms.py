"""Platforms (OCI image index, "platform") and which of them can stand in for which, as containerd matches them."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

from ..errors import UsageError

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"v([0-9]{1,4})(?:\.([0-9]{1,4}))?")
_OS_ALIASES = {"macos": "darwin"}
_ARCHITECTURE_ALIASES = {
    "i386": "386",
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
}
# What a 32-bit ARM distribution's name stands for, whatever variant is written behind it.
_IMPLIED_VARIANT = {"armhf": "v7", "armel": "v6", "i386": ""}
# The oldest version of an architecture, which is what having no variant means (arm alone has another default, v7).
_FLOOR = {"amd64": "v1", "arm": "v5", "arm64": "v8"}
_MACHINES = {
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
    "mips": ("mips" if sys.byteorder == "big" else "mipsle", ""),
    "mips64": ("mips64" if sys.byteorder == "big" else "mips64le", ""),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and a processor. Always in containerd's normal form, however it was written.

    `variant` is "" where it is the default one: arm64 is arm64/v8, amd64 is amd64/v1; only arm spells it out (v7).
    """

    os: str
    architecture: str
    variant: str = ""
    os_features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        system = self.os.lower()
        architecture, variant = _normalise(self.architecture.lower(), self.variant.lower())
        object.__setattr__(self, "os", _OS_ALIASES.get(system, system))
        object.__setattr__(self, "architecture", architecture)
        object.__setattr__(self, "variant", variant)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse `os/architecture[/variant]`. Raises UsageError."""
        words = text.split("/")
        if len(words) not in (2, 3) or not all(_WORD.fullmatch(word) for word in words):
            raise UsageError(f"{text!r} is not a platform: write OS/ARCHITECTURE[/VARIANT], for example linux/arm64/v8")
        return cls(words[0], words[1], words[2] if len(words) == 3 else "")

    @classmethod
    def host(cls) -> Platform:
        """Return this machine's platform, by uname(2)."""
        name = os.uname()
        machine = name.machine
        architecture, variant = _MACHINES.get(machine, (machine, ""))
        if arm := re.match(r"armv([5-8])", machine):
            architecture, variant = "arm", f"v{arm[1]}"
        return cls(name.sysname, architecture, variant)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def rank(wanted: Platform, have: Platform) -> int | None:
    """How far `have` is from `wanted`: 0 is the same, more is an older version that runs as well, None is no match.

    The ladders are those of containerd's platforms.Only, within one architecture: unlike there, 386 is no substitute
    for amd64 nor arm for arm64, because a mount shows a tree and the user should see the one that was asked for.
    """
    if (wanted.os, wanted.architecture) != (have.os, have.architecture):
        return None
    if wanted.variant == have.variant:
        return 0
    if wanted.architecture not in _FLOOR:
        return None if have.variant else 1
    new, old = _version(wanted), _version(have)
    floor = _FLOOR_VERSION[wanted.architecture]
    if new is None or old is None or not floor <= old <= new:
        return None
    if wanted.architecture != "arm64":
        return new[0] - old[0] if new[1] == old[1] == 0 else None
    if new[0] == old[0]:
        return new[1] - old[1]
    if (new[0], old[0]) != (9, 8):
        return None
    # Armv9.x contains Armv8.(x+5), and the v8 line ends at 8.9.
    newest = min(new[1] + 5, 9)
    return new[1] + 1 + newest - old[1] if old[1] <= newest else None


def _normalise(architecture: str, variant: str) -> tuple[str, str]:
    variant = _IMPLIED_VARIANT.get(architecture, variant)
    architecture = _ARCHITECTURE_ALIASES.get(architecture, architecture)
    if architecture in _FLOOR:
        if variant[:1].isdecimal():
            variant = f"v{variant}"
        variant = variant.removesuffix(".0")
        if architecture == "arm":
            variant = variant or "v7"
        elif variant == _FLOOR[architecture]:
            variant = ""
    return architecture, variant


def _version(platform: Platform) -> tuple[int, int] | None:
    match = _VERSION.fullmatch(platform.variant or _FLOOR[platform.architecture])
    return (int(match[1]), int(match[2] or 0)) if match else None


_FLOOR_VERSION = {architecture: (int(version[1:]), 0) for architecture, version in _FLOOR.items()}
