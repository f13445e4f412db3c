"""Progress of long-running commands: all that is under way in one display, and a line for each thing that is done."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

Style = Literal["bar", "plain", "none", "json"]

_EVERY = {"bar": 0.1, "plain": 10.0, "json": 1.0}  # seconds between two looks
_WINDOW = 10.0  # seconds over which a rate is taken
_ROWS = 8  # things that are shown by themselves
_WIDTH = 20  # characters of a bar
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Console(NamedTuple):
    """Where progress is shown.

    `report` prints a line. `show` shows lines that the next ones replace; None where output is not a terminal.
    `sparing`: elsewhere than on a terminal nothing is said of what is done.
    """

    report: Callable[[str], None]
    show: Callable[[str], None] | None
    style: Style = "plain"
    sparing: bool = False


class _Thing:
    """Something under way: `done` of `total` bytes."""

    def __init__(self) -> None:
        self.done = self.total = 0


class Lines:
    """A Meter. `clock` in seconds. For any number of threads.

    As bars: what is under way, redrawn ten times a second. Plain: one line of it every 10 s. As JSON: an object a line,
    once a second. What is done gets a line in any case, but for the style "none".
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._lock = threading.Lock()
        self._things: dict[str, _Thing] = {}
        self._moved = 0  # bytes, of all things
        self._history: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._style: Style = "bar" if console.show and console.style == "bar" else console.style
        self._next = clock() + (0.0 if self._style == "bar" else _EVERY.get(self._style, 0.0))

    def update(self, what: str, done: int, total: int) -> None:
        """Note that `what` has come to `done` of `total` bytes."""
        with self._lock:
            thing = self._things.setdefault(what, _Thing())
            self._moved += max(0, done - thing.done)
            thing.done, thing.total = done, total
            now = self._clock()
            if self._style != "none" and now >= self._next:
                self._next = now + _EVERY[self._style]
                self._show(now)
            if done >= total > 0:
                del self._things[what]

    def done(self, what: str, size: int, how: str) -> None:
        """Say that `what`, of `size` bytes, is done, and `how`."""
        with self._lock:
            for name in [name for name in self._things if what.startswith(name.partition(": ")[0])]:
                del self._things[name]
            if self._style == "none" or (self._style == "plain" and self._console.sparing):
                return
            if self._console.show:
                self._console.show("")
            if self._style == "json":
                self._console.report(json.dumps({"event": "done", "what": what, "bytes": size, "how": how}))
            else:
                self._console.report(f"{what}  {readable(size)}  {how}")
            if self._style == "bar":
                self._next = 0.0

    def _show(self, now: float) -> None:
        self._history.append((now, self._moved))
        while len(self._history) > 2 and self._history[1][0] <= now - _WINDOW:
            self._history.popleft()
        since, before = self._history[0]
        rate = (self._moved - before) / (now - since) if now > since else 0.0
        left = sum(max(0, thing.total - thing.done) for thing in self._things.values())
        seconds = left / rate if rate else None
        if self._style == "json":
            self._show_json(rate, seconds)
        elif self._style == "bar" and self._console.show:
            rows = [_bar(what, thing) for what, thing in list(self._things.items())[:_ROWS]]
            if len(self._things) > _ROWS:
                rows.append(f"and {len(self._things) - _ROWS} more")
            rows.append(_pace(rate, seconds))
            self._console.show("\n".join(rows))
        else:
            parts = [_share(what, thing) for what, thing in self._things.items()]
            self._console.report(f"{'; '.join(parts)}; {_pace(rate, seconds)}")

    def _show_json(self, rate: float, seconds: float | None) -> None:
        under_way = [{"what": what, "done": thing.done, "total": thing.total} for what, thing in self._things.items()]
        about = {"rate": round(rate), "left": None if seconds is None else round(seconds, 1)}
        self._console.report(json.dumps({"event": "progress", "under_way": under_way, **about}))


def _share(what: str, thing: _Thing) -> str:
    return f"{what}  {readable(thing.done)} of {readable(thing.total)}  {100 * thing.done // max(thing.total, 1)} %"


def _bar(what: str, thing: _Thing) -> str:
    full = min(_WIDTH, _WIDTH * thing.done // max(thing.total, 1))
    return f"{what:<32} [{'#' * full:<{_WIDTH}}] {readable(thing.done)} of {readable(thing.total)}"


def _pace(rate: float, seconds: float | None) -> str:
    left = "" if seconds is None else f", {_time(seconds)} left"
    return f"{readable(rate)}/s{left}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def readable(number: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError
