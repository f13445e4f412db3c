"""The granule map: what is present, across word boundaries, at a short end, and shared by several stores."""

from __future__ import annotations

import os
from contextlib import ExitStack
from errno import EACCES, EBADF, EINVAL

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.core import GRANULE, Store
from tests.support.coreharness import KIB, Rig, bits_of, file_with

quick = settings(deadline=None, print_blob=True, max_examples=60)
SIZES = [1, GRANULE - 1, GRANULE, GRANULE + 1, 63 * GRANULE, 64 * GRANULE - 1, 64 * GRANULE, 64 * GRANULE + 1]


def open_and_close(*args: int | None, **kwargs: int | None) -> None:
    Store(*args, **kwargs).close()  # type: ignore[arg-type]  # a fake


@pytest.mark.parametrize("size", [*SIZES, 128 * GRANULE + 7])
def test_empty_then_full(size: int) -> None:
    with Rig(size) as rig:
        assert rig.stats().present == 0
        assert bits_of(rig.store.copy_map()) == set()
        assert not rig.store.has(0, size)
        assert not rig.store.has(size - 1, 1)
        rig.preset(0, rig.granules)
        assert rig.stats().present == size
        assert bits_of(rig.store.copy_map()) == set(range(rig.granules))
        assert rig.store.has(0, size)


@pytest.mark.parametrize("size", SIZES)
def test_all_but_the_last_granule(size: int) -> None:
    with Rig(size) as rig:
        rig.preset(0, rig.granules - 1)
        last = (rig.granules - 1) * GRANULE
        assert rig.stats().present == last
        assert not rig.store.has(size - 1, 1)
        assert not rig.store.has(0, size)
        if last:
            assert rig.store.has(0, last)
            assert not rig.store.has(last - 1, 2)


def test_copy_map_has_whole_words() -> None:
    with Rig(130 * GRANULE) as rig:
        assert len(rig.store.copy_map()) == 24


def test_no_map_means_all_present() -> None:
    with Rig(3 * GRANULE + 5, full=True) as rig:
        assert rig.store.copy_map() == b""
        assert rig.store.has(0, rig.size)
        assert rig.stats().present == rig.size


@pytest.mark.parametrize("offset, length", [(0, 0), (5 * GRANULE, 1), (0, 5 * GRANULE + 1), (GRANULE, 2**64 - 1)])
def test_has_wants_a_range_of_the_blob(offset: int, length: int) -> None:
    with Rig(5 * GRANULE) as rig, pytest.raises(OSError) as caught:
        rig.store.has(offset, length)
    assert caught.value.errno == EINVAL


@quick
@given(st.sets(st.integers(0, 199)), st.integers(0, 199), st.integers(1, 200))
def test_has_and_copy_agree_with_a_set(present: set[int], first: int, count: int) -> None:
    with Rig(200 * GRANULE - 100) as rig:
        for granule in present:
            rig.preset(granule, granule + 1)
        end = min(first + count, 200)
        length = min(end * GRANULE, rig.size) - first * GRANULE
        assert bits_of(rig.store.copy_map()) == present
        assert rig.store.has(first * GRANULE, length) == (present >= set(range(first, end)))
        assert rig.stats().present == len(present) * GRANULE - (100 if 199 in present else 0)


@quick
@given(st.sets(st.integers(0, 99)), st.integers(0, 99), st.integers(1, 40))
def test_landing_sets_the_bits_it_brought_and_no_others(present: set[int], first: int, count: int) -> None:
    """The read is parked, its run taken, and half of the run landed."""
    with Rig(100 * GRANULE) as rig:
        for granule in present:
            rig.preset(granule, granule + 1)
        wanted = set(range(first, min(first + count, 100)))
        if wanted <= present:
            return
        rig.client().read(first * GRANULE, len(wanted) * GRANULE)
        rig.parked(1)
        run = rig.take()
        half = run.length // GRANULE // 2 * GRANULE
        rig.land(run, run.offset, half)
        landed = set(range(run.offset // GRANULE, (run.offset + half) // GRANULE))
        assert bits_of(rig.store.copy_map()) == present | landed
        rig.store.finish(run.id)


def test_map_offset() -> None:
    """The map may lie behind a header in its file."""
    with ExitStack() as stack:
        data = file_with(stack, 64 * GRANULE)
        header = b"\xff" * 4096
        bits = file_with(stack, 4096 + 8, header + b"\x05")
        store = Store(data, 64 * GRANULE, map_fd=bits, map_offset=4096)
        stack.callback(store.close)
        assert bits_of(store.copy_map()) == {0, 2}
        assert store.has(2 * GRANULE, GRANULE)
        assert not store.has(GRANULE, GRANULE)


@pytest.mark.parametrize("size", [0, 2**63 - 1, 2**64 - 1])
def test_open_refuses_the_size(size: int) -> None:
    with ExitStack() as stack, pytest.raises(OSError) as caught:
        open_and_close(file_with(stack, GRANULE), size)
    assert caught.value.errno == EINVAL


def test_open_with_bad_descriptors() -> None:
    with ExitStack() as stack:
        good = file_with(stack, GRANULE)
        for data, bits in ((1000000, None), (good, 1000000)):
            with pytest.raises(OSError) as caught:
                open_and_close(data, GRANULE, map_fd=bits)
            assert caught.value.errno == EBADF


def test_open_refuses_an_unaligned_map() -> None:
    with ExitStack() as stack, pytest.raises(OSError) as caught:
        open_and_close(file_with(stack, GRANULE), GRANULE, map_fd=file_with(stack, 64 * KIB), map_offset=8)
    assert caught.value.errno == EINVAL


def test_open_refuses_a_map_that_cannot_be_written() -> None:
    with ExitStack() as stack, pytest.raises(OSError) as caught:
        bits = file_with(stack, GRANULE)
        readonly = os.open(f"/proc/self/fd/{bits}", os.O_RDONLY)
        stack.callback(os.close, readonly)
        open_and_close(file_with(stack, GRANULE), GRANULE, map_fd=readonly)
    assert caught.value.errno == EACCES


@pytest.mark.parametrize("offset, length", [(0, 0), (0, 4096), (4096, 4096), (4096, 8191)])
def test_open_refuses_a_map_that_is_too_short(offset: int, length: int) -> None:
    """To look at a page beyond the file's end would be a SIGBUS."""
    size = 4096 * 8 * GRANULE + 1  # a page of map and one bit more
    with ExitStack() as stack, pytest.raises(OSError) as caught:
        open_and_close(file_with(stack, size), size, map_fd=file_with(stack, length), map_offset=offset)
    assert caught.value.errno == EINVAL


def test_two_stores_share_a_map() -> None:
    with Rig(64 * GRANULE) as rig:
        other = rig.open()
        rig.client().read(0, GRANULE)
        rig.parked(1)
        rig.fetch(rig.take())
        assert other.has(0, 32 * GRANULE)
        assert not other.has(0, 33 * GRANULE)
        buffer = bytearray(32 * GRANULE)
        assert other.read_into(buffer, 0) == len(buffer)
        assert buffer == rig.slice(0, len(buffer))
        assert other.copy_map() == rig.store.copy_map()
        assert rig.client(other).call(0, 100, 9).data == rig.slice(100, 9)


def test_a_reopened_store_knows_what_was_there() -> None:
    with Rig(64 * GRANULE) as rig:
        rig.preset(0, 64)
        store = rig.open()
        assert store.has(0, rig.size)
        assert rig.client(store).call(0, 0, rig.size).data == rig.data
        assert store.stats().hits == 1
