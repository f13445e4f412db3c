"""Sizes, shares and ages as people write and read them. Pure functions; what cannot be read raises UsageError."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import UsageError

_UNITS = ("", "K", "M", "G", "T")  # powers of 1024
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NAMES = (("week", 7 * 86400), ("day", 86400), ("hour", 3600), ("minute", 60))


class Limit(NamedTuple):
    """A number of bytes or, with `percent`, so many per cent of a filesystem."""

    number: int
    percent: bool = False

    def of(self, filesystem: int) -> int:
        """In bytes, on a filesystem of so many bytes."""
        return filesystem * self.number // 100 if self.percent else self.number


def _bytes(value: str) -> int:
    """0 for what is no size."""
    match = re.fullmatch(r"([0-9]{1,12})(?:\.([0-9]{1,6}))?([KMGT]?)", value.upper(), re.ASCII)
    if not match or (match[2] and not match[3]):
        return 0
    unit: int = 1024 ** _UNITS.index(match[3])
    fraction = match[2] or "0"
    return int(match[1]) * unit + int(fraction) * unit // int(10 ** len(fraction))


def parse_size(name: str, value: str) -> int:
    """Bytes, above 0; `name` is the option's, for the message."""
    number = _bytes(value)
    if not 0 < number < 1 << 62:
        raise UsageError(f"{name}={value!r}: a size above 0 is needed, in bytes or with the unit K, M, G or T")
    return number


def parse_limit(name: str, value: str) -> Limit:
    """Parse a size, or N% of the filesystem, 1 to 100."""
    match = re.fullmatch(r"([0-9]{1,3})%", value, re.ASCII)
    if match and 1 <= int(match[1]) <= 100:
        return Limit(int(match[1]), percent=True)
    number = _bytes(value)
    if match or not 0 < number < 1 << 62:
        raise UsageError(
            f"{name}={value!r}: it must be a size such as 20G (units K, M, G, T), or 1% to 100% of the disk"
        )
    return Limit(number)


def parse_age(name: str, value: str) -> float:
    """Seconds, 0 or more; a number alone might be meant as days."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", value, re.ASCII) or re.fullmatch(r"(0)()", value)
    if not match:
        raise UsageError(f"{name}={value!r}: a time with its unit is needed, such as 30d (s, m, h, d or w)")
    return float(int(match[1]) * _SECONDS[match[2]])


def show_bytes(number: int) -> str:
    """At most five characters and a unit, as in `12.3 MiB`."""
    value = float(number)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{number} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def show_age(seconds: float) -> str:
    """In the largest unit of which there are two at least, as in `3 hours`; a clock that was set back gives 0."""
    whole = max(0, int(seconds))
    for name, unit in _NAMES:
        if whole >= 2 * unit:
            return f"{whole // unit} {name}s"
    return f"{whole} second{'' if whole == 1 else 's'}"
