"""The process that mounts, as its daemon sees it; daemon/worker.py says what they say to one another."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .channel import Channel


class Caller:
    """The process that mounts, as long as it is there."""

    def __init__(self, channel: Channel):
        self.channel: Channel | None = channel
        self._hung_up = False

    def receive(self) -> dict[str, Any]:
        """Return the next message; an empty one when the caller has gone."""
        try:
            return self.channel.receive() if self.channel else {}
        except (OSError, ValueError, EOFError):
            return {}

    def has_spoken(self) -> bool:
        """Whether receive() would not wait."""
        return self.channel is None or bool(select.select([self.channel], [], [], 0)[0])

    def send(self, **message: object) -> None:
        if self.channel is not None:
            try:
                self.channel.send(message)
            except OSError:
                # The caller has gone: gone() says so, although there is nothing left to poll.
                self._hung_up = True
                self.close()

    def gone(self) -> bool:
        """Tell whether the caller has gone. Polled while the worker has no loop yet."""
        if self.channel is None:
            return self._hung_up  # or let go in good order
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLHUP)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None
