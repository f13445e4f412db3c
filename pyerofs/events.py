"""Signals and descriptors: the main thread of a process that serves, which waits for them and does nothing else."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Events:
    """A poll loop with signals and timers. For the main thread only; owns nothing that it watches."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._signals: dict[int, Callable[[], None]] = {}
        self._timers: dict[Callable[[], None], tuple[float, float]] = {}  # next time, interval
        self._running = False
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self.watch(self._woken.fileno(), self._dispatch_signals)

    def watch(self, fd: int, callback: Callable[[], None], events: int = select.POLLIN) -> None:
        self._callbacks[fd] = callback
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._callbacks.pop(fd, None):
            self._poll.unregister(fd)

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call the callback in the loop, not in the handler, when the signal comes."""
        self._signals[number] = callback
        signal.signal(number, lambda *_: None)

    def every(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timers[callback] = (time.monotonic() + seconds, seconds)

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Once."""
        self._timers[callback] = (time.monotonic() + seconds, 0.0)

    def never(self, callback: Callable[[], None]) -> None:
        self._timers.pop(callback, None)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        self._running = True
        while self._running:
            for fd, _ in self._poll.poll(self._until_timer()):
                if self._running and (callback := self._callbacks.get(fd)):
                    callback()
            self._run_timers()

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._wake.close()
        self._woken.close()

    def _dispatch_signals(self) -> None:
        for number in self._woken.recv(4096):
            if callback := self._signals.get(number):
                callback()

    def _until_timer(self) -> float | None:
        """Milliseconds; None while there is no timer, so that an idle process never wakes."""
        if not self._timers:
            return None
        return max(0.0, min(due for due, _ in self._timers.values()) - time.monotonic()) * 1000 + 1

    def _run_timers(self) -> None:
        now = time.monotonic()
        for callback, (due, interval) in list(self._timers.items()):
            if due <= now and self._running:
                if interval:
                    self._timers[callback] = (now + interval, interval)
                else:
                    del self._timers[callback]
                callback()


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that what was being made is removed.

    Only a main thread can see to that; in another one nothing is changed.
    """
    import threading  # a supervisor, which is a small process, does without

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
