"""zstd compression, and decompression of data from a stranger in bounded memory.

The only importer of zstandard, which only users of such layers need.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_MAX = 128 << 20  # bytes that a frame may want to be remembered: what zstd itself takes without being told more


def _zstandard(what: str = "a layer that is compressed") -> Any:
    try:
        import zstandard
    except ImportError:
        raise UnavailableError(
            f"{what} with zstd needs the Python package zstandard: pip install 'pyerofs[zstd]'"
        ) from None
    return zstandard


def check() -> None:
    """Raise UnavailableError where zstd data cannot be decompressed."""
    _zstandard()


def deflater(level: int) -> Callable[[bytes], bytes]:
    """Return a function that compresses a piece to one frame, always the same with the same version of zstd.

    It is for any number of threads. Raises UnavailableError where there is none.
    """
    zstandard = _zstandard("compressing")
    local = threading.local()

    def deflate(piece: bytes) -> bytes:
        try:
            compress = local.compress
        except AttributeError:
            compress = local.compress = zstandard.ZstdCompressor(level=level).compress
        frame: bytes = compress(piece)
        return frame

    return deflate


def inflate(frame: bytes, length: int) -> bytes:
    """Return the `length` bytes, more than 0, that one whole frame is said to hold; no more are made.

    Raises ImageError.
    """
    zstandard = _zstandard()
    try:
        # A length that the frame itself names would be believed, and so much memory be taken.
        if zstandard.get_frame_parameters(frame).content_size not in (length, zstandard.CONTENTSIZE_UNKNOWN):
            raise ImageError(f"a zstd frame does not hold the {length} bytes that it should")
        data: bytes = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX).decompress(
            frame, max_output_size=length, allow_extra_data=False
        )
    except zstandard.ZstdError as e:
        raise ImageError(f"a zstd frame is corrupt: {e}") from None
    if len(data) != length:
        raise ImageError(f"a zstd frame holds {len(data)} bytes instead of {length}")
    return data


def inflate_start(frames: bytes, length: int) -> bytes:
    """Return the first `length` bytes, more than 0, of what frames hold. Raises ImageError where they hold fewer."""
    zstandard = _zstandard()
    found = bytearray()
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
        with decompressor.stream_reader(frames, read_across_frames=True) as reader:
            while len(found) < length and (piece := reader.read(length - len(found))):
                found += piece
    except zstandard.ZstdError as e:
        raise ImageError(f"a zstd frame is corrupt: {e}") from None
    if len(found) != length:
        raise ImageError(f"zstd frames hold {len(found)} bytes instead of {length}")
    return bytes(found)


class Inflater:
    """A stream of zstd frames. `write` gets what is in them, in pieces of at most about 128 KiB. For one thread."""

    def __init__(self, write: Callable[[bytes], None]):
        self._zstandard = _zstandard()
        self._writer = self._zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX).stream_writer(_Writer(write))

    def feed(self, data: bytes) -> None:
        """Decompress the next bytes. Raises ImageError, and what `write` raises."""
        try:
            self._writer.write(data)
        except self._zstandard.ZstdError as e:
            raise ImageError(f"the zstd data is corrupt: {e}") from None


class _Writer:
    def __init__(self, write: Callable[[bytes], None]):
        self._write = write

    def write(self, piece: bytes) -> int:
        self._write(bytes(piece))
        return len(piece)
