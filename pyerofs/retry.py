"""How long to leave a server alone after a failure: exponential backoff with jitter."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST = 0.1  # seconds; doubled at each attempt
MAX = 10.0
ASKED_MAX = 60.0  # seconds of a Retry-After that are honoured
_SLICE = 0.2  # seconds between two looks at cancel


def delay(attempt: int, asked: float | None = None, most: float = MAX, first: float = FIRST) -> float:
    """Seconds to wait after the attempt-th failure (from 0), up to `most`; `asked`: what a Retry-After says."""
    seconds = min(first * 2 ** min(attempt, 16), most) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
    return float(seconds) if asked is None else max(seconds, min(asked, ASKED_MAX))


def pause(seconds: float, cancel: Callable[[], bool]) -> None:
    """Waits that long, or until `cancel` says so."""
    end = time.monotonic() + seconds
    while not cancel() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE))
