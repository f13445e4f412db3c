"""Progress of long-running commands, line by line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

_EVERY = 0.1  # seconds between two looks of a progress line
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Console(NamedTuple):
    """`report` prints a line. `transient` shows one that the next replaces; None where output is not a terminal."""

    report: Callable[[str], None]
    transient: Callable[[str], None] | None


class Lines:
    """A Meter: a line for each thing that is done, and on a terminal how far the next one is."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._next = 0.0

    def update(self, what: str, done: int, total: int) -> None:
        transient = self._console.transient
        if transient and self._clock() >= self._next:
            self._next = self._clock() + _EVERY
            transient(f"{what}  {_size(done)} of {_size(total)}  {100 * done // max(total, 1)} %")

    def done(self, what: str, size: int, how: str) -> None:
        if self._console.transient:
            self._console.transient("")
        self._console.report(f"{what}  {_size(size)}  {how}")
        self._next = 0.0


def _size(number: float) -> str:
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError
