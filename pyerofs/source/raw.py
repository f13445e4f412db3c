"""A raw layer as a source: its bytes are vouched for only once all of them are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..erofs.layer import Layer, Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from .blobs import BlobReader, Connections


class RawSource:
    """A raw layer whose bytes nothing vouches for until all of them are there. Thread-safe. Owns the connections."""

    def __init__(
        self,
        name: str,
        layer: int,
        blob: BlobReader,
        connections: Connections,
        origin: Layer | None = None,
        giver: str = "",
    ):
        self.name = name
        self.digest = blob.digest
        self.size = blob.size
        self.layer = layer
        self.origin = origin or Layer(layer, blob.digest, blob.size)
        self.storage = Storage(
            self.origin.given_key(giver), shared=self.origin.shared_key(), giver=giver, hot=self.origin.hot_ranges
        )
        self._blob = blob
        self.connections = connections

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Callable[[int, bytes], bool],
        *,
        whole: Callable[[], None],
        cancel: Callable[[], bool],
    ) -> None:
        self._blob.read_range(offset, length, sink, whole=whole, cancel=cancel)

    def content(self) -> str | None:
        return self.digest

    def complete(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        self.connections.close()
