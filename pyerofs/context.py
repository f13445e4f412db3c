"""What a caller gives to a piece of work: where its messages go, and whether it is still wanted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger

LOGGER = "pyerofs"  # for logging.getLogger()


def ignore(_: str) -> None:
    """Drop a line."""


def never() -> bool:
    """Return False: this work cannot be cancelled."""
    return False


@dataclass(frozen=True, slots=True)
class Context:
    """Who wants the work.

    `log` gets a line for each thing that a user may want to know; `trace`, if there is one, a line for each exchange
    with a registry; `cancelled` is asked now and then by what waits, whether the work is no longer wanted. All three
    may be called from any thread.
    """

    log: Callable[[str], None] = ignore
    trace: Callable[[str], None] | None = None
    cancelled: Callable[[], bool] = never

    def with_log(self, log: Callable[[str], None]) -> Context:
        """Return a context whose lines for the user go elsewhere."""
        return replace(self, log=log)


NOBODY = Context()


def log_of_caller(log: Callable[[str], None] | None) -> Callable[[str], None]:
    """Return where lines for a caller of the Python interface go: to `log`, else to logging.getLogger("pyerofs").

    A program that has not imported logging has set up nothing that could show them, so it is not imported for that.
    """
    if log is not None:
        return log
    logger = _logger()
    return logger.warning if logger else ignore


def trace_of_caller(trace: Callable[[str], None] | None) -> Callable[[str], None] | None:
    """As log_of_caller(), for the exchanges with a registry, where the logger takes lines of level DEBUG."""
    if trace is not None:
        return trace
    logger = _logger()
    return logger.debug if logger and logger.isEnabledFor(10) else None  # logging.DEBUG


def _logger() -> Logger | None:
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    logger: Logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # else Python itself prints what no handler takes
    return logger
