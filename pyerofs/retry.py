"""How long to leave a server alone after a failure, and how often to try again while something is opened.

Exponential backoff with jitter.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, TypeVar

from .errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

ATTEMPTS = 7  # about six seconds, while a user waits at a terminal, or a container waits to start
FIRST = 0.1  # seconds; doubled at each attempt
MAX = 10.0
ASKED_MAX = 60.0  # seconds of a Retry-After that are honoured
_SLICE = 0.2  # seconds between two looks at cancel


def boottime() -> float:
    """Seconds, which go by while the machine is suspended too: what a server has said for how long counts in these."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def delay(attempt: int, asked: float | None = None, most: float = MAX, first: float = FIRST) -> float:
    """Seconds to wait after the attempt-th failure (from 0), up to `most`; `asked`: what a Retry-After says.

    A server says the same to all who come at once, so some of them wait longer: else they would come again at once.
    """
    seconds = min(first * 2 ** min(attempt, 16), most) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
    if asked is None:
        return float(seconds)
    wait = min(asked, ASKED_MAX)
    return float(max(seconds, wait + min(wait, most) * random.uniform(0.0, 0.5)))  # noqa: S311 - jitter


def pause(seconds: float, cancel: Callable[[], bool]) -> None:
    """Wait that long, or until `cancel` says so."""
    end = time.monotonic() + seconds
    while not cancel() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE))


def patiently(
    ask: Callable[[float], T],
    cancel: Callable[[], bool],
    timeout: float,
    enough: Callable[[RegistryError], bool] = lambda _: False,
) -> T:
    """Return what `ask` gives, after a few tries if need be, within `timeout` seconds.

    It gets the seconds that are left.

    `enough` tells the failures after which there is no other try. Raises what `ask` raises.
    """
    deadline = time.monotonic() + timeout
    for attempt in range(ATTEMPTS - 1):
        try:
            return ask(max(0.1, deadline - time.monotonic()))
        except RegistryError as e:
            seconds = delay(attempt, e.retry_after)
            if not e.temporary or enough(e) or time.monotonic() + seconds > deadline:
                raise
            pause(seconds, cancel)
    return ask(max(0.1, deadline - time.monotonic()))
