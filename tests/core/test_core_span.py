"""Spans of gzip streams: where they may begin, what they inflate to, what of a window they need; damage is noticed."""

from __future__ import annotations

import gzip
import random
import zlib
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.core import (
    GUNZIP_CORRUPT,
    GUNZIP_MEMBER,
    GUNZIP_POINT,
    SPAN_CORRUPT,
    SPAN_RIGHT,
    SPAN_SHORT,
    WINDOW,
    Gunzip,
    inflate_span,
    reduce_window,
)
from tests.support.coreharness import KIB


class Point(NamedTuple):
    at: int
    out: int
    bits: int
    window: bytes


def text(size: int, seed: int = 0) -> bytes:
    """Bytes that deflate finds something in, near and far, and nothing in some places."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(2, 40)) for _ in range(300)]
    found = bytearray()
    while len(found) < size:
        kind = rng.randrange(20)
        if kind == 0:
            found += bytes(rng.randrange(9 * KIB))
        elif kind == 1:
            found += rng.randbytes(rng.randrange(3 * KIB))
        elif kind == 2 and found:
            start = rng.randrange(max(0, len(found) - WINDOW), len(found))
            found += found[start : start + rng.randrange(1, 900)]
        else:
            found += rng.choice(words)
    return bytes(found[:size])


def inflate(blob: bytes, spacing: int, piece: int = 64 * KIB, most: int = 64 * KIB) -> tuple[bytes, list[Point]]:
    """All of a gzip stream, in pieces, and its points."""
    found, points, at, full = bytearray(), [], 0, False
    gunzip = Gunzip(most, spacing)
    try:
        while at < len(blob) or full:
            step = gunzip.step(blob[at : at + piece])
            assert step.why != GUNZIP_CORRUPT
            at += step.consumed
            found += step.plain
            full = len(step.plain) == most and step.why != GUNZIP_MEMBER
            assert (step.at, step.out) == (at, len(found))
            if step.why == GUNZIP_POINT:
                points.append(Point(step.at, step.out, step.bits, gunzip.window()))
    finally:
        gunzip.close()
    return bytes(found), points


def compressed(data: bytes, level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY, memory: int = 8) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, 31, memory, strategy)
    return made.compress(data) + made.flush()


def check_spans(blob: bytes, plain: bytes, points: list[Point]) -> None:
    """Each span inflates to what it must, with all of its window and with what it needs of it."""
    assert points and points[0].out == 0
    ends = [*((point.at, point.out) for point in points[1:]), (len(blob), len(plain))]
    for point, (end, out) in zip(points, ends, strict=True):
        span = blob[point.at - (point.bits > 0) : end]
        wanted = plain[point.out : out]
        assert inflate_span(span, point.bits, point.window, len(wanted)) == (SPAN_RIGHT, wanted)
        if point.window:
            assert point.window.endswith(plain[max(0, point.out - WINDOW) : point.out]) or point.window.startswith(
                b"\0"
            )
            reduced = reduce_window(span, point.bits, point.window)
            assert inflate_span(span, point.bits, reduced, len(wanted)) == (SPAN_RIGHT, wanted)
            assert all(kept in (0, byte) for kept, byte in zip(reduced, point.window, strict=True))


@pytest.mark.parametrize("level", range(10))
def test_span_at_every_level(level: int) -> None:
    """Level 0 is stored blocks; the others have bits left at their ends."""
    plain = text(700 * KIB, level)
    blob = compressed(plain, level)
    found, points = inflate(blob, 32 * KIB)
    assert found == plain and len(points) > 8
    check_spans(blob, plain, points)


@pytest.mark.parametrize("strategy", [zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE])
def test_span_of_blocks_that_are_seldom(strategy: int) -> None:
    plain = text(300 * KIB, strategy)
    blob = compressed(plain, 6, strategy, memory=2)
    found, points = inflate(blob, 8 * KIB)
    assert found == plain and len(points) > 8
    check_spans(blob, plain, points)


def test_span_over_members() -> None:
    """Empty ones, tiny ones, one with a name in its header; points come in them too."""
    parts = [text(size, size) for size in (50 * KIB, 0, 1, 3, 90 * KIB, 17, 60 * KIB)]
    members = [compressed(part, level) for level, part in enumerate(parts)]
    named = bytearray(gzip.compress(b"named", mtime=0))
    named[3] |= 8
    members.insert(3, bytes(named[:10]) + b"a name\0" + bytes(named[10:]))
    blob, plain = b"".join(members), b"".join([*parts[:3], b"named", *parts[3:]])
    for spacing in (1, 4 * KIB, 40 * KIB, 1 << 20):
        found, points = inflate(blob, spacing)
        assert found == plain
        check_spans(blob, plain, points)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(0, 9), st.lists(st.integers(0, 60 * KIB), min_size=1, max_size=4),
    st.integers(1, 70 * KIB), st.integers(1, 9 * KIB), st.integers(1, 9 * KIB), st.booleans(),
)  # fmt: skip
def test_span_of_anything(
    seed: int, level: int, sizes: list[int], spacing: int, piece: int, most: int, flushed: bool
) -> None:
    """Whatever the members, the pieces of input, and the room for output."""
    blob = plain = b""
    for number, size in enumerate(sizes):
        part = text(size, seed + number)
        made = zlib.compressobj(level, zlib.DEFLATED, 31)
        blob += made.compress(part[: size // 2])
        if flushed:
            blob += made.flush(zlib.Z_FULL_FLUSH)  # an empty stored block
        blob += made.compress(part[size // 2 :]) + made.flush()
        plain += part
    found, points = inflate(blob, spacing, piece, most)
    assert found == plain
    check_spans(blob, plain, points)


def test_points_depend_on_the_stream_alone() -> None:
    blob = compressed(text(400 * KIB), 6)
    assert inflate(blob, 32 * KIB, piece=1000, most=777)[1] == inflate(blob, 32 * KIB)[1]


def test_stream_without_points() -> None:
    plain = text(200 * KIB)
    assert inflate(compressed(plain, 6), 0) == (plain, [])


def test_damaged_span_is_noticed_or_changes_nothing_beyond_memory() -> None:
    """Whatever comes out has the wanted length, or there is a word for it."""
    plain = text(200 * KIB)
    blob = compressed(plain, 6)
    point, end = (points := inflate(blob, 32 * KIB)[1])[1], points[2]
    span, length = blob[point.at - 1 : end.at], end.out - point.out
    rng = random.Random(1)
    results = set()
    for _ in range(2000):
        broken = bytearray(span)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        result, found = inflate_span(broken, point.bits, point.window, length)
        assert len(found) == (length if result == SPAN_RIGHT else 0)
        assert len(reduce_window(broken, point.bits, point.window)) == WINDOW
        results.add(result)
    assert SPAN_CORRUPT in results


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9])
def test_span_that_is_cut_short(left: int) -> None:
    """In a member's end too, behind which another one was to come."""
    first, second = compressed(b"first", 6), compressed(b"second" * 100, 6)
    at = len(first) - 8 - len(zlib.compress(b"first")) + 6
    span = (first + second)[at : len(first) - 8 + left]
    assert inflate_span(span, 0, b"", 5) == (SPAN_RIGHT, b"first")
    assert inflate_span(span, 0, b"", 6) == (SPAN_SHORT, b"")
    assert inflate_span((first + second)[at:], 0, b"", 605) == (SPAN_RIGHT, b"first" + b"second" * 100)


def test_span_with_nothing_behind_its_first_bits() -> None:
    assert inflate_span(b"\x80", 1, b"", 1)[0] == SPAN_SHORT
    assert inflate_span(b"", 0, b"", 1)[0] == SPAN_SHORT
    assert inflate_span(b"", 0, b"", 0) == (SPAN_RIGHT, b"")


@pytest.mark.parametrize(("span", "bits"), [(b"", 1), (b"abc", 8)])
def test_span_that_cannot_be(span: bytes, bits: int) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        inflate_span(span, bits, b"", 1)
    with pytest.raises(ValueError, match="Invalid"):
        reduce_window(span, bits, bytes(WINDOW))


def test_window_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="window of 7 bytes"):
        inflate_span(b"abc", 0, bytes(7), 1)


def test_window_is_kept_whole_where_too_little_of_the_span_is_there() -> None:
    plain = text(200 * KIB)
    blob = compressed(plain, 6)
    point = inflate(blob, 32 * KIB)[1][1]
    assert reduce_window(blob[point.at - 1 : point.at + 50], point.bits, point.window) == point.window
    reduced = reduce_window(blob[point.at - 1 :], point.bits, point.window)
    assert reduced.count(0) > point.window.count(0)


def test_stream_that_is_damaged() -> None:
    blob = bytearray(compressed(text(100 * KIB), 6))
    blob[-6] ^= 1  # the CRC
    gunzip = Gunzip(1 << 20, 0)
    try:
        assert gunzip.step(blob).why == GUNZIP_CORRUPT
        assert gunzip.step(blob).why == GUNZIP_CORRUPT  # and stays so
    finally:
        gunzip.close()
