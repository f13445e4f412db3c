"""Sources: where a blob's bytes come from, with its exact size and its identity."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .errors import ImageError, SystemFailure, UsageError
from .manifest import MEDIA_TYPES, Descriptor, Index, Manifest, choose_layer, parse, select, verify_digest
from .options import OCIOptions
from .platforms import Platform
from .reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from .registry import Registry

INDEX_DEPTH = 4  # an index may name indexes; nobody nests them deeper for a good reason
_BLKGETSIZE64 = 0x80081272  # linux/fs.h


class Source(Protocol):
    """`size` in bytes; `digest` of the whole, which names its place in the cache; `name` and `layer` for people."""

    size: int
    digest: str
    name: str
    layer: int

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
        False wants no more. Raises RegistryError; everything that sink has been given before is good. Any thread.
        """

    def close(self) -> None: ...


class Image(NamedTuple):
    """A reference, resolved: `manifest` is `digest`'s, both verified."""

    reference: Reference
    digest: str
    manifest: Manifest


class LocalSource:
    """An image file or a block device. Owns `fd` until close()."""

    def __init__(self, path: str):
        self.name = path
        self.digest = ""
        self.layer = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise UsageError(f"cannot open {path}: {e.strerror}") from None
        try:
            self.size = self._size(path)
        except BaseException:
            self.close()
            raise

    def _size(self, path: str) -> int:
        found = os.fstat(self.fd)
        if stat.S_ISBLK(found.st_mode):
            try:
                answer = fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8))
            except OSError as e:
                raise SystemFailure(f"cannot read the size of {path}: {e.strerror}") from None
            size = int(struct.unpack("=Q", answer)[0])
        elif stat.S_ISREG(found.st_mode):
            size = found.st_size
        else:
            raise UsageError(f"{path} is neither a regular file nor a block device")
        if not size:
            raise ImageError(f"{path} is empty")
        return size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def get_document(registry: Registry, what: str) -> tuple[str, Manifest | Index]:
    """The manifest or index with this tag or digest, and its digest, verified. Raises RegistryError, ImageError."""
    answer = registry.get_manifest(what, MEDIA_TYPES)
    digest = what
    if ":" in what:
        verify_digest(answer.body, what)
    else:
        from hashlib import sha256

        digest = f"sha256:{sha256(answer.body).hexdigest()}"
    return digest, parse(answer.body, answer.media_type)


def resolve(registry: Registry, reference: Reference, platform: Platform) -> Image:
    """Follows a reference to the manifest for the platform. Raises RegistryError, ImageError."""
    what = reference.manifest_reference
    for _ in range(INDEX_DEPTH):
        digest, document = get_document(registry, what)
        if isinstance(document, Manifest):
            return Image(reference, digest, document)
        what = select(document, platform).digest
    raise ImageError(f"its indexes are nested more than {INDEX_DEPTH} deep")


def choose(image: Image, options: OCIOptions) -> tuple[int, Descriptor]:
    """The layer that the options name, or the only native one. Raises ImageError."""
    return choose_layer(image.manifest, options.layer, options.blob)
