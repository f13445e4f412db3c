"""The TOC of an eStargz layer: stargz-snapshotter, docs/estargz.md; the older stargz too.

The blob is gzip members one after another. The last but one holds a tar archive with the TOC, the last one, of no
content, says where that begins. The manifest's annotation has the SHA-256 of the TOC.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping

from ...errors import ImageError
from ..decompress import LayerStream
from ..reader import FILE, Tar
from . import entries, fields
from .keys import STARGZ_DIGEST, STARGZ_NAMES
from .model import Toc, TocError, Units

_NAME = b"stargz.index.json"
_FOOTER, _OLD_FOOTER, _EXTERNAL_FOOTER = 51, 47, 46  # bytes
_GZIP = b"\x1f\x8b\x08\x04"
_EMPTY = b"\x01\0\0\xff\xff" + bytes(8)  # a block without content, its checksum and length
_MAGIC = b"STARGZ"
_EXTERNAL = b"STARGZEXTERNALTOC"
# What is fetched of the layer's end before it is known how much is wanted: a TOC has about half a percent of the layer.
_TAIL_MIN, _TAIL_MAX, _TAIL_SHARE = 64 << 10, 1 << 20, 100


def read_estargz(annotations: Mapping[str, str], size: int, read: Callable[[int, int], bytes]) -> Toc:
    """Read the TOC of a blob of `size` bytes, of which `read(offset, length)` gives a range. Raises TocError.

    What has been read has the digest in the annotations when this returns.
    """
    wanted = fields.sha256(annotations.get(STARGZ_DIGEST))
    if size <= _FOOTER:
        raise TocError("it is missing: the layer is too small for one")
    length = min(size, max(_TAIL_MIN, min(size // _TAIL_SHARE, _TAIL_MAX)))
    tail = _exactly(read, size - length, length)
    offset, footer = _toc_place(tail[-_FOOTER:])
    end = size - footer
    if not 0 < offset < end:
        raise TocError("it lies outside the layer")
    if end - offset > entries.TOC_MAX:
        raise TocError(f"it has {end - offset} bytes compressed; at most {entries.TOC_MAX} are taken")
    begin = size - length
    if offset < begin:
        tail = _exactly(read, offset, begin - offset) + tail
        begin = offset
    stored = tail[offset - begin : end - begin]
    del tail
    document = _document(stored)
    hasher = hashlib.sha256()
    while piece := document(1 << 20):
        hasher.update(piece)
    if hasher.digest() != wanted:
        raise TocError("it has another digest than the manifest says")
    toc = Toc("eStargz", Units("gzip", "plain"))
    toc.entries = entries.read_entries(_document(stored), toc, offset, STARGZ_NAMES)
    return toc


def _exactly(read: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
    found = read(offset, length)
    if len(found) != length:
        raise TocError("it cannot be read whole")
    return found


def _toc_place(footer: bytes) -> tuple[int, int]:
    """Return where the TOC begins, and how long the footer is."""
    for length, head in ((_FOOTER, _GZIP + bytes(5) + b"\xff\x1a\0SG\x16\0"), (_OLD_FOOTER, b"")):
        found = footer[-length:]
        digits, magic = found[length - 35 : length - 19], found[length - 19 : length - 13]
        starts = found.startswith(head) if head else found.startswith(_GZIP) and found[10:12] == b"\x16\0"
        if starts and magic == _MAGIC and found.endswith(_EMPTY):
            try:
                return int(digits, 16), length
            except ValueError:
                break
    if _EXTERNAL in footer[-_EXTERNAL_FOOTER:]:
        raise TocError("it is not in the layer but in another image (external TOC)")
    raise TocError("it is missing: the layer does not end as eStargz does")


def _document(stored: bytes) -> Callable[[int], bytes]:
    """Return a function that gives the JSON's next bytes: the first file of the archive in a gzip member."""
    tar = Tar(LayerStream(io.BytesIO(stored)).read)
    try:
        entry = next(iter(tar), None)
    except ImageError as error:
        raise TocError(f"it is not in a tar archive: {error}") from None
    if entry is None or entry.kind != FILE or entry.name != _NAME:
        raise TocError("it is not in a tar archive by its name")
    if entry.size > entries.TOC_MAX:
        raise TocError(f"it has {entry.size} bytes; at most {entries.TOC_MAX} are taken")
    pieces = tar.data()

    def read(_: int) -> bytes:
        try:
            return next(pieces, (0, b""))[1]
        except ImageError as error:
            raise TocError(f"it cannot be decompressed: {error}") from None

    return read
