"""Runs that begin and end with chunks, so that what is verified in chunks is fetched once."""

from __future__ import annotations

import random

import pytest

from pyerofs.core import FILL, GRANULE, Run, Store
from tests.support.coreharness import KIB, MIB, Rig

CHUNK = 256 * KIB


def ask(rig: Rig, offset: int, length: int = 4 * KIB) -> Run:
    """The run that a read of what is absent leads to."""
    rig.client().read(offset, length)
    return rig.take()


def bounds(run: Run) -> tuple[int, int]:
    return run.offset, run.offset + run.length


@pytest.mark.parametrize(("offset", "length", "wanted"), [
    (0, 1, (0, CHUNK)), (CHUNK - 1, 1, (0, CHUNK)), (5 * CHUNK + 70_000, 10, (5 * CHUNK, 6 * CHUNK)),
    (CHUNK - 1, 2, (0, 2 * CHUNK)), (CHUNK, 3 * CHUNK + 1, (CHUNK, 5 * CHUNK)),
])  # fmt: skip
def test_a_run_takes_in_whole_chunks(offset: int, length: int, wanted: tuple[int, int]) -> None:
    with Rig(8 * MIB, align=CHUNK) as rig:
        assert bounds(ask(rig, offset, length)) == wanted


def test_the_last_chunk_ends_with_the_blob() -> None:
    size = 2 * CHUNK + 5000
    with Rig(size, align=CHUNK) as rig:
        assert bounds(ask(rig, size - 1, 1)) == (2 * CHUNK, size)


def test_nothing_is_asked_for_that_is_in_flight() -> None:
    with Rig(8 * MIB) as rig:
        first = ask(rig, 64 * KIB)  # 64 to 192 KiB: of a store that knows nothing of chunks
        assert bounds(first) == (64 * KIB, 192 * KIB)
        rig.store.finish(first.id)
    with Rig(8 * MIB, align=CHUNK) as rig:
        first = ask(rig, 2 * CHUNK)
        assert bounds(ask(rig, 2 * CHUNK - 1, 1)) == (CHUNK, 2 * CHUNK)
        assert bounds(ask(rig, 3 * CHUNK + 9, CHUNK)) == (3 * CHUNK, 5 * CHUNK)
        rig.fetch(first)
        assert rig.store.has(2 * CHUNK, CHUNK)


def other_store(rig: Rig) -> Store:
    """Of another process that knows nothing of chunks."""
    rig.align = GRANULE
    return rig.open()


def test_nothing_that_is_present_is_taken_in_before_what_is_wanted() -> None:
    with Rig(8 * MIB, align=CHUNK) as rig:
        other = other_store(rig)
        waiting = rig.task(other.wait, 16 * KIB, GRANULE, 20)
        rig.fetch(rig.take(other), other)  # 16 to 144 KiB
        assert waiting.result()
        assert bounds(ask(rig, 200 * KIB)) == (144 * KIB, 2 * CHUNK)  # a window, and the rest of a chunk
        assert bounds(ask(rig, 8 * KIB)) == (0, 16 * KIB)


def test_nothing_is_taken_in_that_another_process_has_in_flight() -> None:
    with Rig(8 * MIB, align=CHUNK) as rig:
        other = other_store(rig)
        rig.task(other.wait, CHUNK, GRANULE, 20)
        theirs = rig.take(other)  # the first half of the second chunk
        assert bounds(theirs) == (CHUNK, CHUNK + 128 * KIB)
        assert bounds(ask(rig, 2 * CHUNK - 1, 1)) == (2 * CHUNK - GRANULE, 2 * CHUNK)
        assert bounds(ask(rig, CHUNK - 1, 1)) == (0, CHUNK)
        assert bounds(ask(rig, 2 * CHUNK, 1)) == (2 * CHUNK, 3 * CHUNK)
        rig.fetch(theirs, other)


def test_filling_too() -> None:
    with Rig(2 * MIB, align=CHUNK) as rig:
        seen = []
        for _ in range(4):
            run = rig.store.take_fill(FILL, 300 * KIB, 1)
            assert run is not None
            seen.append(bounds(run))
        assert seen == [(n * 2 * CHUNK, (n + 1) * 2 * CHUNK) for n in range(4)]


def test_every_byte_comes_once_whatever_the_order() -> None:
    size = 8 * MIB + 12_345
    for seed in range(5):
        rng = random.Random(seed)
        with Rig(size, align=rng.choice([8, 100, 1000]) * GRANULE) as rig:
            rig.source()
            client = rig.client()
            for _ in range(200):
                length = rng.randrange(1, 200_000)
                offset = rng.randrange(size - length)
                cookie = client.read(offset, length)
                assert client.reply() == (cookie, 0, rig.slice(offset, length))
            for offset in range(0, size, MIB):
                length = min(MIB, size - offset)
                cookie = client.read(offset, length)
                assert client.reply() == (cookie, 0, rig.slice(offset, length))
            assert rig.stats().landed < size + 64 * KIB * rig.stats().runs  # a bridge is no more than that
            assert rig.stats().present == size


@pytest.mark.parametrize("align", [0, 1, 4095, 6000])
def test_what_is_no_multiple_of_a_granule(align: int) -> None:
    with pytest.raises(OSError, match="Invalid"):
        Rig(MIB, align=align)
