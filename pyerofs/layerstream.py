"""The tar stream in a layer's blob: plain, gzip or zstd by what it is, whatever its media type says; hashed as it goes.

RFC 1952, RFC 8878. For one thread.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from .errors import ImageError, SystemFailure

_PIECE = 256 << 10  # bytes
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_OTHERS = ((b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"\x5d\0\0", "lzma"))


class LayerStream:
    """Decompresses `file`, which stays the caller's. Raises ImageError, and SystemFailure without zstandard."""

    def __init__(self, file: BinaryIO) -> None:
        self._pieces = _pieces(file)
        self._piece = memoryview(b"")
        self._hasher = hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, and none only at the end."""
        while not self._piece:
            try:
                self._piece = memoryview(next(self._pieces))
            except StopIteration:
                return b""
        found, self._piece = bytes(self._piece[:count]), self._piece[count:]
        self._hasher.update(found)
        return found

    def finish(self) -> str:
        """The digest of all that was in it, what nobody has read included."""
        while self.read(_PIECE):
            pass
        return f"sha256:{self._hasher.hexdigest()}"


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
        raise SystemFailure(
            "a layer is compressed with zstd, for which a module is missing: pip install zstandard"
        ) from None
    # It takes a stream that is cut short for its end: whoever knows the content's digest sees it.
    with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False) as reader:
        try:
            while piece := reader.read(_PIECE):
                yield piece
        except zstandard.ZstdError as error:
            raise ImageError(f"the layer's zstd stream is corrupt: {error}") from None
