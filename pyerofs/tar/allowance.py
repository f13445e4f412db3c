"""What an image may take of the disk: a few kilobytes from a stranger can decompress to terabytes."""

from __future__ import annotations

import threading

from ..errors import ImageError
from ..quantity import show_bytes

# What is allowed without being asked for: so many times what was downloaded, and so many bytes in any case. Layers that
# mean no harm decompress to ten or twenty times their size.
_RATIO, _SMALL = 200, 1 << 30


class Allowance:
    """Bytes that may come of `size` bytes, or `limit` (oci.unpacked_max) where that is given. Thread-safe."""

    def __init__(self, size: int, limit: int | None) -> None:
        self.most = limit or max(_RATIO * size, _SMALL)
        self._left = self.most
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Count what has been decompressed. Raises ImageError where that is more than is left."""
        with self._lock:
            self._left -= count
            left = self._left
        if left < 0:
            raise self.exceeded()

    def check(self, size: int) -> None:
        """Raise ImageError for what would have so many bytes in all."""
        if size > self.most:
            raise self.exceeded()

    def exceeded(self) -> ImageError:
        return ImageError(
            f"what it decompresses to is more than {show_bytes(self.most)}, and may be meant to fill the disk: "
            "if you trust the image, allow it with -o oci.unpacked_max=SIZE"
        )
