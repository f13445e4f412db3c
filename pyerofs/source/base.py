"""The Source protocol: where a layer's bytes come from, with exact size and identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ..erofs.layer import Layer, Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..context import Context
    from .blobs import Connections

    # Opens a source.
    Opener = Callable[[Context], "Source"]
    # Gets whole granules from an offset on, or bytes up to the source's end, that are as good as what a sink gets.
    Spare = Callable[[int, bytes], None]


class Source(Protocol):
    """Where a blob's bytes come from.

    `size` in bytes; `digest`: the layer's; `name` and `layer` for messages. `origin`: the layer as it can be opened
    again without its manifest; `storage`: how its bytes are kept. `connections`: it may share them with others.
    """

    size: int
    digest: str
    name: str
    layer: int
    connections: Connections

    @property
    def origin(self) -> Layer: ...

    @property
    def storage(self) -> Storage: ...

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Callable[[int, bytes], bool],
        *,
        whole: Callable[[], None],
        cancel: Callable[[], bool],
    ) -> None:
        """One attempt at bytes [offset, offset + length), each piece given to sink(offset, piece) in order.

        `whole` is called before the first piece if it is the whole blob that comes, from 0 on. A sink that returns
        False wants no more. Raises RegistryError; everything that sink has been given before is good, unless it is a
        SpoiledError, with which all of it is not. Any thread.
        """

    def content(self) -> str | None:
        """Return the digest that the whole must have, as far as that is known. Any thread."""

    def complete(self) -> None:
        """All of it is in the cache, so that what is kept for reading may go. It may be read again. Any thread."""

    def close(self) -> None: ...


@runtime_checkable
class SparingSource(Protocol):
    """A source that comes to know more than is asked for, and gives that to `spare`, from the thread that reads."""

    spare: Spare | None


class SourceWrapper:
    """What a source that changes only how another is read has of that one, which stays the caller's. Any thread."""

    def __init__(self, source: Source):
        self.size = source.size
        self.digest = source.digest
        self.name = source.name
        self.layer = source.layer
        self.connections = source.connections
        self._source = source

    @property
    def origin(self) -> Layer:
        return self._source.origin

    @property
    def storage(self) -> Storage:
        return self._source.storage

    def content(self) -> str | None:
        return self._source.content()

    def complete(self) -> None:
        self._source.complete()

    def close(self) -> None:
        pass
