"""One call, as its handler sees it; and what a server's methods are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple


class Call:
    """A call under way. `metadata`: the client's headers, by name. Any thread."""

    def __init__(self, method: str, metadata: Mapping[str, str], seconds: float | None) -> None:
        self.method = method
        self.metadata = metadata
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self._ended = threading.Event()

    def remaining(self) -> float | None:
        """Return the seconds until nobody waits for the response any more; None: somebody always does."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def cancelled(self) -> bool:
        """Tell whether nobody waits for the response any more."""
        return self._ended.is_set()

    def end(self) -> None:
        """Note that the response has been sent, or that nobody waits for it."""
        self._ended.set()


class Method(NamedTuple):
    """A method of a service: takes a request's bytes, raises RpcError. For one of several threads.

    Either `unary`, which returns the response, or `stream`, which yields several.
    """

    unary: Callable[[bytes, Call], bytes] | None = None
    stream: Callable[[bytes, Call], Iterable[bytes]] | None = None
