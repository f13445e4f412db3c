"""This process's own arguments, where every user of the machine can read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIPED = (b"oci.password=", b"oci.proxy=")  # the URL of a proxy may hold a password


def wipe_passwords() -> None:
    """Overwrite passwords in this process's own arguments, where every user of the machine can read them.

    The kernel shows the memory that argv was put into, so that is what is changed; there is no Python interface for it.
    """
    with open("/proc/self/cmdline", "rb") as f:
        shown = f.read()
    if not any(name in shown for name in _WIPED):
        return
    import ctypes  # not at the top: 10 ms that few need

    with open("/proc/self/stat", "rb") as f:
        start = int(f.read().rpartition(b")")[2].split()[45])  # proc(5): arg_start
    for first, end in secret_spans(shown):
        ctypes.memset(start + first, ord("*"), end - first)


def secret_spans(arguments: bytes) -> Iterator[tuple[int, int]]:
    """Where in the arguments (each ended by a NUL) the values of secret options are; as option_text.py reads them."""
    for name in _WIPED:
        at = 0
        while (at := arguments.find(name, at)) >= 0:
            first = end = at = at + len(name)
            if arguments[end : end + 1] == b'"':  # up to the closing quote, which a comma does not end
                closing = re.compile(rb'["\0]').search(arguments, end + 1)
                end = closing.start() if closing else len(arguments)
            while arguments[end : end + 1] not in (b"", b"\0", b","):
                end += 2 if arguments[end : end + 1] == b"\\" else 1
            yield first, min(end, len(arguments))
