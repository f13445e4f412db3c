"""What the kernel had to say since a moment."""

from __future__ import annotations

import os
import re

WARNING = 4  # syslog's level
# What the driver says, as warnings, when a device is disconnected as it should be; what a kernel that looks for every
# kind of partition table thinks of an image; and what emulated time makes it wonder about on a busy machine.
ORDINARY = re.compile(
    r"nbd\d+: (shutting down sockets|NBD_DISCONNECT|detected capacity change|partition table )"
    r"|^Dev nbd\d+: unable to read RDB block"
    r"|^(hrtimer|perf): interrupt took|^clocksource: |^workqueue: .* hogged CPU|^sched: "
)


class KernelLog:
    """From its making on. Wants to read /dev/kmsg; use it in a guest, where nobody else makes the kernel talk."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def warnings(self) -> list[str]:
        """New messages of level warning and worse, but for ordinary ones."""
        found = []
        while record := self._next():
            prefix, _, text = record.partition(";")
            line = text.splitlines()[0]
            if int(prefix.split(",")[0]) & 7 <= WARNING and not ORDINARY.search(line):
                found.append(line)
        return found

    def close(self) -> None:
        os.close(self._fd)

    def _next(self) -> str:
        while True:
            try:
                return os.read(self._fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return ""
            except BrokenPipeError:
                continue  # some messages were overwritten: the next ones
