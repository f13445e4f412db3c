"""CRC32C: with the processor's instruction and without, against known values and one another."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.core import GRANULE, crc32c
from tests.support.coreharness import Rig, sums_of

# RFC 3720, B.4, and the check value of the catalogue of CRCs.
KNOWN = [
    (b"", 0),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (bytes(GRANULE), 0x98F94189),
]


@pytest.mark.parametrize("portably", [False, True])
@pytest.mark.parametrize("data, wanted", KNOWN)
def test_known_values(data: bytes, wanted: int, portably: bool) -> None:
    assert crc32c(data, portably=portably) == wanted


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(0, 7))
def test_both_ways_agree(data: bytes, skip: int) -> None:
    view = memoryview(data)[skip:]
    assert crc32c(view) == crc32c(view, portably=True)


@pytest.mark.parametrize("size", [1, GRANULE, 2 * GRANULE, 3 * GRANULE, 7 * GRANULE + 1, 130 * GRANULE - 1])
def test_landing_writes_the_sum_of_each_granule(size: int) -> None:
    """Three at once, single ones, more than a batch, a short last one."""
    with Rig(size) as rig:
        rig.client().read(0, size)
        rig.parked(1)
        rig.fetch(rig.take(), piece=size)
        assert rig.sums_fd is not None
        assert os.pread(rig.sums_fd, 1 << 20, 4096) == sums_of(rig.data)
        rig.parked(0)


@pytest.mark.parametrize("piece", [1, 4095, 5000])
def test_the_sums_do_not_depend_on_the_pieces(piece: int) -> None:
    with Rig(3 * GRANULE + 17) as rig:
        rig.client().read(0, rig.size)
        rig.parked(1)
        rig.fetch(rig.take(), piece=piece)
        assert rig.sums_fd is not None
        assert os.pread(rig.sums_fd, 100, 4096) == sums_of(rig.data)
