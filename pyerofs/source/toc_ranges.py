"""Ranges of a blob for who reads its table of contents."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ..retry import patiently
from ..tar.toc.model import TocError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..oci.manifest import Descriptor
    from .blobs import BlobReader


class TocRanges:
    """Gives ranges of the blob; each within `timeout` seconds. For one thread."""

    def __init__(self, blob: BlobReader, timeout: float, cancel: Callable[[], bool] = lambda: False) -> None:
        self._blob = blob
        blob.checked = True  # by the digest of the table
        self._timeout = timeout
        self._cancel = cancel

    def __call__(self, offset: int, length: int) -> bytes:
        """Return the bytes, which nobody has checked.

        Raises RegistryError; TocError where there are no ranges to be had: then the blob is better read once, whole.
        """
        return patiently(lambda left: self._attempt(offset, length), self._cancel, self._timeout)

    def _attempt(self, offset: int, length: int) -> bytes:
        found = bytearray()

        def sink(at: int, piece: bytes) -> bool:
            if at <= offset:  # another mirror begins anew
                found.clear()
            found.extend(piece)
            return True

        self._blob.read_range(offset, length, sink, whole=_refuse, cancel=self._cancel, begun=lambda: False)
        return bytes(found)


def _refuse() -> None:
    raise TocError("its registry sends no ranges, only whole layers")


def verify_blob(blob: bytes, layer: Descriptor) -> None:
    """Raise TocError unless the bytes are the layer's whole blob: who reads it as a stream asks other mirrors too."""
    algorithm = layer.digest.partition(":")[0]
    if f"{algorithm}:{hashlib.new(algorithm, blob).hexdigest()}" != layer.digest:
        raise TocError("other bytes came for the layer than the manifest names")
