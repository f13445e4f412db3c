"""A native layer as its manifest describes it, and how a source wants its bytes to be kept. Pure values."""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ImageError
from ..oci.reference import is_digest
from . import chunk_index
from .chunk_index import IndexLocation
from .native import is_compressed

if TYPE_CHECKING:
    from ..oci.manifest import Descriptor, Manifest

SIZE_MAX = 1 << 44  # bytes: 2^32 blocks of 4 KiB. A larger number would only make the cache reserve space for its map
CONTENT = "org.erofs.uncompressed-digest"
TARGET = "org.erofs.chunk-index.target"
MAP = "io.pyerofs.chunk-map.digest"  # of a device of a converted image, in this machine's cache only
HOT = "io.pyerofs.hot"  # bytes from the image's beginning on that a start reads, in its order
_FRAME = struct.Struct("<II")  # of zstd, to be skipped: magic, length
_FRAME_MAGIC = 0x184D2A50


class Storage(NamedTuple):
    """How a source's bytes are kept in the cache.

    `key`: names their place there, as KIND:NAME. `verified`: each piece has been checked against a hash before the
    sink got it. `section`: the chunk index that is to lie beside them, so that the layer can be opened without its
    registry. `align`: bytes, a multiple of a granule: what is fetched at a time. `fill`: all of it is to be fetched,
    whether it is read or not. `shared`: the key that they have earned when all of them have been hashed, ""
    where no digest is known; `giver` of those that have not, for display. `hot`: offsets and lengths, in bytes, of
    what a start is said to read, in its order.
    """

    key: str
    verified: bool = False
    section: bytes = b""
    align: int = 0
    fill: bool = False
    shared: str = ""
    giver: str = ""
    hot: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """A native layer as its manifest describes it.

    `number` in the manifest, base 0; `digest` and `size` (bytes) of its blob, `compressed` as zstd frames. `index`:
    where its chunk index is, if it has one: in the blob or, `alone`, in a blob of its own, which is then thought to
    follow the layer's. `content`: digest of the decompressed image, "" where it is not stated. `converted`: it was made
    on this machine out of an ordinary layer, and is at no registry. `map`: digest of the chunk map by which a tar
    layer, which is at its registry, is read as a device; "" for all others. `hot`: bytes from the image's beginning
    on that a start reads, by what the manifest says.
    """

    number: int
    digest: str
    size: int
    compressed: bool = False
    index: IndexLocation | None = None
    alone: bool = False
    content: str = ""
    converted: bool = False
    map: str = ""
    hot: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Layer:
        index = values.get("index")
        return cls(**{**values, "index": IndexLocation(*index) if index else None})

    @property
    def hot_ranges(self) -> tuple[tuple[int, int], ...]:
        """As Storage has them."""
        return ((0, self.hot),) if self.hot else ()

    @property
    def alone_size(self) -> int:
        """Bytes of the stand-alone index's blob."""
        assert self.index is not None  # noqa: S101 - the caller has one
        return self.index.end - self.index.offset - (_FRAME.size if self.index.frame else 0)

    @property
    def plain_key(self) -> str:
        """Return what the keys of bytes that no chunk's hash vouches for begin with.

        By itself it is the key of a raw layer that has been hashed, which is the same blob whatever size a manifest
        gives it.
        """
        algorithm, _, digits = self.digest.partition(":")
        return f"{algorithm}+zstd:{digits}" if self.compressed else self.digest

    def given_key(self, giver: str, *, by_index: bool = False) -> str:
        """Return the key of bytes that nothing vouches for yet: for those who ask the same giver for the same.

        `by_index`: they were found in a compressed layer by its index.
        """
        what = ("given", giver, str(self.size), self._index_digest(by_index), self.content if self.compressed else "")
        return f"{self.plain_key}@{_short(*what)}"

    def shared_key(self, *, by_index: bool = False) -> str:
        """Return the key of the bytes when all of them have been hashed; "" where no digest of all of them is known.

        It is for those who trust the same digests, since a manifest vouches only for its own image.
        """
        if not self.compressed:
            return self.digest
        if by_index and not self.content:
            return ""
        return f"{self.plain_key}={_short('vouched', self._index_digest(by_index), self.content)}"

    def _index_digest(self, by_index: bool) -> str:
        return self.index.digest if by_index and self.index else ""

    @property
    def verified_key(self) -> str:
        """Return the key of the cache entry for bytes that the index, or the chunk map, vouches for.

        It goes by the index, not by the layer: an index fixes every byte, while any manifest can give another
        image's layer an index of its own. Nothing is ever put there without a check. Of a chunk map all of that holds
        too.
        """
        if self.map:
            algorithm, _, digits = self.map.partition(":")
            return f"{algorithm}+map:{digits}"
        assert self.index is not None  # noqa: S101 - the caller has one
        algorithm, _, digits = self.index.digest.partition(":")
        return f"{algorithm}+chunks:{digits}"


def describe(manifest: Manifest, number: int, *, use_index: bool = True) -> Layer:
    """Describe layer `number`, which is native; without `use_index` as if a raw layer had no index.

    Raises ImageError for annotations that are malformed.
    """
    found = manifest.layers[number]
    compressed = is_compressed(found.media_type)
    content = found.annotations.get(CONTENT, "") if compressed else found.digest
    if content and not is_digest(content):
        raise ImageError(f"the annotation {CONTENT} is not a sha256 or sha512 digest")
    place, alone = None, False
    if use_index or compressed:
        place = chunk_index.locate(found.annotations, found.size, compressed)
        if place is None and number + 1 < len(manifest.layers):
            place = _alone(found, manifest.layers[number + 1], compressed)
            alone = place is not None
    hot = found.annotations.get(HOT, "")
    size = int(hot) if hot.isdecimal() and len(hot) < 15 else 0  # it is a hint: nothing depends on it
    return Layer(number, found.digest, found.size, compressed, place, alone, content, hot=size)


def describe_converted(manifest: Manifest, number: int) -> Layer:
    """Describe layer `number` of a converted image, whose manifest this machine has made. Raises ImageError."""
    found = describe(manifest, number)
    chunk_map = manifest.layers[number].annotations.get(MAP, "")
    if not (found.index or is_digest(chunk_map)):
        raise ImageError(f"layer {number} has neither chunk index nor chunk map")
    return replace(found, converted=True, map=chunk_map)


def _short(*words: str) -> str:
    """128 bits of a hash that tells these words from all others; none of them has a line's end in it."""
    return sha256("\n".join(words).encode(errors="surrogateescape")).hexdigest()[:32]


def _alone(layer: Descriptor, index: Descriptor, compressed: bool) -> IndexLocation | None:
    """Return where the stand-alone index behind the layer lies, if there is one. Its own digest is the index's."""
    if index.media_type != chunk_index.MEDIA_TYPE:
        return None
    target = index.annotations.get(TARGET)
    if target != layer.digest:
        raise ImageError(f"the chunk index behind the layer is for another one: its {TARGET} is {target!a:.80}")
    return IndexLocation(
        layer.size, layer.size + index.size + (_FRAME.size if compressed else 0), index.digest, compressed
    )


def section_of(payload: bytes, place: IndexLocation) -> bytes:
    """Return a stand-alone index as if it lay at `place`, behind the layer: in a zstd frame if that is compressed."""
    return _FRAME.pack(_FRAME_MAGIC, len(payload)) + payload if place.frame else payload
