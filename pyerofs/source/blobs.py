"""Blobs that are not at a registry: files of this machine, and layers that only the cache has.

They share Blob's interface, so every source works on them unchanged.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from ..errors import CorruptError, RegistryError
from ..files import regular
from ..http.request import ByteCounter

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..registry.range_response import Cancel, Sink

_PIECE = 1 << 20  # bytes


class BlobReader(Protocol):
    """What registry/blob.py's Blob is."""

    digest: str
    size: int
    checked: bool
    directory: str | None

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Sink,
        *,
        whole: Callable[[], None] | None = None,
        cancel: Cancel | None = None,
        begun: Callable[[], bool] | None = None,
    ) -> int: ...


class BlobStore(Protocol):
    """What has the blobs of an image.

    `giver` names whose bytes they are; "" where there can be none that are not verified.
    """

    @property
    def giver(self) -> str: ...

    def blob(self, digest: str, size: int, log: Callable[[str], None] | None = None) -> BlobReader: ...


class Connections(Protocol):
    """What has to be closed when no blob is wanted any more. `received`: bytes that have come over the network."""

    received: ByteCounter

    def close(self) -> None: ...


class NoConnections:
    """A blob in a file needs none."""

    received = ByteCounter()

    def close(self) -> None:
        pass


class FileBlob:
    """`size` bytes of the file `path`, thought to have this digest. Any number of threads; owns nothing."""

    def __init__(self, path: str, digest: str, size: int, at: int = 0, within: int | None = None) -> None:
        """`at`: where in the file it begins; `within`: bytes of the whole file, None where the blob is all of it."""
        self.digest = digest
        self.size = size
        self.checked = False
        self.directory: str | None = None
        self._path = path
        self._at = at
        self._within = size if within is None else within

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Sink,
        *,
        whole: Callable[[], None] | None = None,
        cancel: Cancel | None = None,
        begun: Callable[[], bool] | None = None,
    ) -> int:
        """As that of Blob. There is one copy and no way to it that could fail for a moment: no error is temporary."""
        if not 0 <= offset < offset + length <= self.size:
            raise ValueError("the range does not lie within the blob")
        given = 0
        try:
            with open(self._path, "rb", buffering=0, opener=regular) as file:
                actual = os.fstat(file.fileno()).st_size
                if actual != self._within:
                    raise CorruptError(f"{self._path} has {actual} bytes instead of {self._within}")
                while given < length and not (cancel and cancel()):
                    piece = os.pread(file.fileno(), min(_PIECE, length - given), self._at + offset + given)
                    if not piece:
                        raise CorruptError(f"{self._path} was cut short while it was read")
                    given += len(piece)
                    if not sink(offset + given - len(piece), piece):
                        break
        except OSError as error:
            raise RegistryError(f"cannot read {self._path}: {error.strerror}") from None
        return given


class FileBlobs:
    """`path_of` gives a blob's file by its digest; `giver` as Blobs has it."""

    def __init__(self, path_of: Callable[[str], str], giver: str = "") -> None:
        self._path_of = path_of
        self.giver = giver

    def blob(self, digest: str, size: int, log: Callable[[str], None] | None = None) -> FileBlob:
        return FileBlob(self._path_of(digest), digest, size)
