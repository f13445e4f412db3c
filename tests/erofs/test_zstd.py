"""zstd data from strangers: right, bounded, or refused."""

from __future__ import annotations

import builtins
import os
from typing import Any

import pytest
import zstandard

from pyerofs.erofs.zstd import Inflater, check, inflate
from pyerofs.errors import ImageError, UnavailableError

DATA = os.urandom(5000) + bytes(60_000)


def frame(data: bytes, **parameters: Any) -> bytes:
    return zstandard.ZstdCompressor(**parameters).compress(data)


@pytest.mark.parametrize("named", [True, False])
def test_one_frame(named: bool) -> None:
    assert inflate(frame(DATA, write_content_size=named, write_checksum=True), len(DATA)) == DATA


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("length", [0, 1, len(DATA) - 1, len(DATA) + 1])
def test_another_length(named: bool, length: int) -> None:
    with pytest.raises(ImageError, match="frame"):
        inflate(frame(DATA, write_content_size=named), length)


def test_frames_that_are_none() -> None:
    good = frame(DATA)
    for bad in (b"", b"x" * 20, good[:-1], good + b"\0", good + good, b"\x50\x2a\x4d\x18\4\0\0\0abcd"):
        with pytest.raises(ImageError, match="zstd frame"):
            inflate(bad, len(DATA))


def test_a_bomb_is_not_even_begun() -> None:
    """A gigabyte in 32 KiB, whether its length is named or not: no more memory is taken than the index allows."""
    import tracemalloc

    for named in (True, False):
        bomb = frame(bytes(1 << 30), write_content_size=named)
        tracemalloc.start()
        with pytest.raises(ImageError):
            inflate(bomb, 4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_a_window_that_is_too_large() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    wide = compressor.compress(bytes(1 << 20)) + compressor.flush()
    with pytest.raises(ImageError, match="too much memory"):
        Inflater(lambda piece: None).feed(wide)


def test_a_stream_of_frames() -> None:
    skip = b"\x5e\x2a\x4d\x18\5\0\0\0hello"
    stream = frame(DATA) + skip + frame(b"") + frame(DATA[::-1]) + skip
    for step in (1, 1000, len(stream)):
        pieces: list[bytes] = []
        inflater = Inflater(pieces.append)
        for at in range(0, len(stream), step):
            inflater.feed(stream[at : at + step])
        assert b"".join(pieces) == DATA + DATA[::-1]
        assert max(map(len, pieces)) <= 256 << 10


def test_a_stream_is_given_in_small_pieces_and_can_be_ended() -> None:
    seen = 0

    def write(piece: bytes) -> None:
        nonlocal seen
        seen += len(piece)
        if seen > 1 << 20:
            raise ImageError("enough")

    with pytest.raises(ImageError, match="enough"):
        Inflater(write).feed(frame(bytes(1 << 30)))
    assert seen < 2 << 20


def test_a_stream_that_is_none() -> None:
    with pytest.raises(ImageError, match="corrupt"):
        Inflater(lambda piece: None).feed(b"neither frame nor anything")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    real = builtins.__import__

    def refuse(name: str, *more: object) -> object:
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *more)  # type: ignore[arg-type]  # a fake

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnavailableError, match=r"pip install 'pyerofs\[zstd\]'"):
        check()
