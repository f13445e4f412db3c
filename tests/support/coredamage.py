"""What happens to a cache's files. A Damage is of granules [first, end) of a rig's data file or of their sums."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pyerofs.core import GRANULE
from tests.support.coreharness import HEADER, MIB, Rig

Damage = Callable[[Rig, int, int], None]


def flip(rig: Rig, first: int, end: int) -> None:
    """One bit of each granule."""
    for granule in range(first, end):
        place = min(granule * GRANULE + granule * 797 % GRANULE, rig.size - 1)
        byte = os.pread(rig.data_fd, 1, place)[0]
        os.pwrite(rig.data_fd, bytes([byte ^ 1 << granule % 8]), place)


def zero(rig: Rig, first: int, end: int) -> None:
    start, stop = first * GRANULE, min(end * GRANULE, rig.size)
    os.pwrite(rig.data_fd, bytes(stop - start), start)


def exchange(rig: Rig, first: int, end: int) -> None:
    """Right bytes, but of another place."""
    for granule in range(first, end):
        start = granule * GRANULE
        length = min(GRANULE, rig.size - start)
        os.pwrite(rig.data_fd, rig.slice((start + MIB) % MIB, length)[::-1], start)


def spoil_sums(rig: Rig, first: int, end: int) -> None:
    assert rig.sums_fd is not None
    os.pwrite(rig.sums_fd, os.urandom(4 * (end - first)), HEADER + 4 * first)


def overwrite(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def elsewhere(function: Callable[[], object]) -> None:
    """In another process: what this one writes while bytes land is taken for the store's own (csrc/store/writers.h)."""
    child = os.fork()
    if not child:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
