"""The tar stream in a layer's blob: plain, gzip or zstd by what it is, whatever its media type says; hashed as it goes.

RFC 1952, RFC 8878. For one thread.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ..errors import ImageError, UnavailableError
from .allowance import Allowance

_PIECE = 256 << 10  # bytes
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = 0x184D2A50  # to 0x184D2A5F: a frame without content
_OTHERS = ((b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"\x5d\0\0", "lzma"))


class LayerStream:
    """Decompresses `file`, which stays the caller's. Raises ImageError, and UnavailableError without zstandard.

    `algorithm`: of the digest; `allowance`: what it may decompress to, None for any number of bytes.
    """

    def __init__(self, file: BinaryIO, algorithm: str = "sha256", allowance: Allowance | None = None) -> None:
        self._pieces = _pieces(file)
        self._piece = memoryview(b"")
        self._algorithm = algorithm
        self._hasher = hashlib.new(algorithm)
        self._allowance = allowance

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, and none only at the end."""
        while not self._piece:
            try:
                self._piece = memoryview(next(self._pieces))
            except StopIteration:
                return b""
            if self._allowance:
                self._allowance.take(len(self._piece))
        found, self._piece = bytes(self._piece[:count]), self._piece[count:]
        self._hasher.update(found)
        return found

    def finish(self) -> str:
        """Return the digest of the whole stream, including what has not been read."""
        while self.read(_PIECE):
            pass
        return f"{self._algorithm}:{self._hasher.hexdigest()}"


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    head = file.read(6)
    file.seek(0)
    if head.startswith(_GZIP):
        return _gunzip(file.read)
    if head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):  # or a skippable frame
        return _unzstd(file)
    for magic, name in _OTHERS:
        if head.startswith(magic):
            raise ImageError(f"the layer is compressed with {name}, which images may not be: gzip and zstd are known")
    return iter(lambda: file.read(_PIECE), b"")


def _gunzip(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """One member after another; zeros may follow."""
    data = read(_PIECE)
    while data:
        member = zlib.decompressobj(31)
        while not member.eof:
            if not data and not (data := read(_PIECE)):
                raise ImageError("the layer's gzip stream is cut short")
            try:
                piece = member.decompress(data, _PIECE)
            except zlib.error as error:
                raise ImageError(f"the layer's gzip stream is corrupt: {error}") from None
            data = member.unconsumed_tail
            if piece:
                yield piece
        data = member.unused_data or read(_PIECE)
        while data and not data.strip(b"\0"):
            data = read(_PIECE)
        if data and len(data) < 2:
            data += read(_PIECE)
        if data and not data.startswith(_GZIP):
            raise ImageError("the layer's gzip stream is followed by something else")


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    try:
        import zstandard  # few layers need it
    except ImportError:
        raise UnavailableError(
            "a layer is compressed with zstd, for which a module is missing: pip install zstandard"
        ) from None
    with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False) as reader:
        try:
            while piece := reader.read(_PIECE):
                yield piece
            _check_frames(file)  # for a stream that is cut short is taken for one that has ended
        except zstandard.ZstdError as error:
            raise ImageError(f"the layer's zstd stream is corrupt: {error}") from None


def _check_frames(file: BinaryIO) -> None:
    """Go from block to block of a zstd stream, up to its end. Raises ImageError where that comes too early.

    RFC 8878, 3.1. What is wrong in any other way is left to the decompressor.
    """
    end = file.seek(0, os.SEEK_END)
    at = 0

    def number(offset: int, length: int) -> int:
        file.seek(offset)
        field = file.read(length)
        if len(field) < length:
            raise _cut_short()
        return int.from_bytes(field, "little")

    while at < end:
        magic = number(at, 4)
        if magic >> 4 == _SKIPPABLE >> 4:
            at += 8 + number(at + 4, 4)
        elif magic == int.from_bytes(_ZSTD, "little"):
            descriptor = number(at + 4, 1)
            single = descriptor >> 5 & 1
            at += 5 + (not single) + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
            last = False
            while not last:
                header = number(at, 3)
                last = bool(header & 1)
                at += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)  # a run is one byte, said so many times
            at += 4 if descriptor & 4 else 0  # a checksum
        else:
            return
    if at > end:
        raise _cut_short()


def _cut_short() -> ImageError:
    return ImageError("the layer's zstd stream is cut short")
