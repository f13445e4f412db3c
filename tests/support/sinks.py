"""Where what is read goes."""

from __future__ import annotations

from collections.abc import Callable


def into(buffer: bytearray) -> Callable[[int, bytes], bool]:
    """A receiver of pieces that come in order, and of which it wants more."""

    def take(_offset: int, piece: bytes) -> bool:
        buffer.extend(piece)
        return True

    return take
