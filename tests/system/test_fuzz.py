"""A moment of what fuzz.py does for long: anything, and what is nearly right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fuzztargets import TARGETS

# Splices of what is right with what is not.
PIECES = [
    b"",
    b" ",
    b"\r\n",
    b"\0",
    b",",
    b"=",
    b'"',
    b"\\",
    b":",
    b"/",
    b"//",
    b"-",
    b"*",
    b"[",
    b"]",
    b"{",
    b"}",
    b"@",
]
PIECES += [
    b"null",
    b"-1",
    b"0",
    b"18446744073709551616",
    b"1e999",
    b"\xff",
    b"\xc3\xa4",
    b"sha256:",
    b"169.254.169.254",
]


def near(samples: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """A sample with some places overwritten, doubled or cut out."""

    @st.composite
    def mutated(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(samples))
        for _ in range(draw(st.integers(0, 4))):
            first = draw(st.integers(0, len(data)))
            end = draw(st.integers(first, min(len(data), first + 20)))
            piece = draw(st.sampled_from(PIECES) | st.binary(max_size=4) | st.just(data[first:end] * 2))
            data = data[:first] + piece + data[end:]
        return data

    return mutated()


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    target, samples = TARGETS[name]
    for sample in samples:
        target(sample)

    @settings(max_examples=300, deadline=None)
    @given(near(samples) | st.binary(max_size=200))
    def feed(data: bytes) -> None:
        target(data)

    feed()
