"""The TOC of a zstd:chunked layer, as containers/storage writes it, and as stargz-snapshotter does.

containers/storage, pkg/chunked/internal/minimal/compression.go; stargz-snapshotter, estargz/zstdchunked. The blob is
zstd frames, then skippable ones: TOC, in one case tar-split data, footer. The manifest's annotations say where the TOC
is, and have its SHA-256 as it is stored, or, from stargz-snapshotter, also the one of the plain JSON.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Callable, Mapping

from ...errors import ImageError
from ..decompress import LayerStream
from . import entries, fields
from .keys import CHECKSUM, CHUNKED, OLD_CHUNKED, POSITION, STARGZ_DIGEST, STARGZ_NAMES
from .model import Toc, TocError, Units

_PLACE = re.compile(r"([0-9]{1,18}):([0-9]{1,18}):([0-9]{1,18}):([0-9]{1,18})", re.ASCII)
_TYPE = 1  # of the TOC: the JSON of CRFS
_FRAME = 8  # bytes of a skippable frame's header
_FOOTER = struct.Struct("<QQQQ8s")  # offset, length, plain length, type, magic
_MAGIC = b"GnUlInUx"


def read_chunked(annotations: Mapping[str, str], size: int, read: Callable[[int, int], bytes]) -> Toc:
    """Read the TOC of a blob of `size` bytes, of which `read(offset, length)` gives a range. Raises TocError.

    What has been read has the digests in the annotations when this returns.
    """
    stored_digest = _only(annotations, CHECKSUM)
    plain_digest = annotations.get(STARGZ_DIGEST)
    offset, length, plain, kind = _place(annotations, size, read)
    if kind != _TYPE:
        raise TocError(f"it is of the unknown type {kind}")
    if offset < _FRAME or not length or offset + length > size:
        raise TocError("it lies outside the layer")
    if max(length, plain) > entries.TOC_MAX:
        raise TocError(f"it has {max(length, plain)} bytes; at most {entries.TOC_MAX} are taken")
    stored = read(offset, length)
    if len(stored) != length:
        raise TocError("it cannot be read whole")
    if stored_digest is not None and hashlib.sha256(stored).digest() != fields.sha256(stored_digest):
        raise TocError("it has another digest than the manifest says")
    if plain_digest is not None:
        hasher = hashlib.sha256()
        document = _document(stored, plain)
        while piece := document(1 << 20):
            hasher.update(piece)
        if hasher.digest() != fields.sha256(plain_digest):
            raise TocError("it has another digest than the manifest says")
    if stored_digest is None and plain_digest is None:
        raise TocError("the manifest has no digest of it")
    toc = Toc("zstd:chunked", Units("zstd", "plain"))
    hidden = frozenset() if plain_digest is None else STARGZ_NAMES
    toc.entries = entries.read_entries(_document(stored, plain), toc, offset - _FRAME, hidden)
    return toc


def _only(annotations: Mapping[str, str], key: str) -> str | None:
    """Return the value of a key that two names exist for. Raises TocError for two values."""
    found = {annotations[prefix + key] for prefix in (CHUNKED, OLD_CHUNKED) if prefix + key in annotations}
    if len(found) > 1:
        raise TocError("the manifest says two things of it")
    return found.pop() if found else None


def _place(annotations: Mapping[str, str], size: int, read: Callable[[int, int], bytes]) -> tuple[int, int, int, int]:
    """Return offset, length, plain length and type of the TOC: as the annotations say, or else the footer."""
    stated = _only(annotations, POSITION)
    if stated is not None:
        found = _PLACE.fullmatch(stated)
        if not found:
            raise TocError(f"the manifest says {stated[:80]!a} for its place")
        return int(found[1]), int(found[2]), int(found[3]), int(found[4])
    if size < _FOOTER.size:
        raise TocError("it is missing: the layer is too small for one")
    footer = read(size - _FOOTER.size, _FOOTER.size)
    if len(footer) != _FOOTER.size or not footer.endswith(_MAGIC):
        raise TocError("it is missing: the layer does not end as zstd:chunked does")
    offset, length, plain, kind, _ = _FOOTER.unpack(footer)
    return offset, length, plain, kind


def _document(stored: bytes, size: int) -> Callable[[int], bytes]:
    """Return a function that gives the JSON's next bytes, of which there are `size`. Raises TocError for others."""
    stream = LayerStream(io.BytesIO(stored))
    left = size

    def read(count: int) -> bytes:
        nonlocal left
        try:
            piece = stream.read(count)
        except ImageError as error:
            raise TocError(f"it cannot be decompressed: {error}") from None
        left -= len(piece)
        if left < 0 or (left and not piece):
            raise TocError("it has another size than is said of it")
        return piece

    return read
