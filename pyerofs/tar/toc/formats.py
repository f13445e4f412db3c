"""Which TOC a layer has, by its descriptor, and the door to its reader. A new format is a reader, and a branch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from .keys import CHECKSUM, CHUNKED, OLD_CHUNKED, SOCI_ZTOC, STARGZ_DIGEST
from .model import Toc, TocError

TocFormat = Literal["", "eStargz", "zstd:chunked", "SOCI"]


def toc_format(media_type: str, annotations: Mapping[str, str]) -> TocFormat:
    """Return the format of the TOC that the descriptor of a tar layer speaks of; "" for none.

    Raises TocError where it speaks of two, or of one that its compression cannot have.
    """
    stargz = STARGZ_DIGEST in annotations
    chunked = any(prefix + CHECKSUM in annotations for prefix in (CHUNKED, OLD_CHUNKED))
    if not (stargz or chunked):
        return "SOCI" if SOCI_ZTOC in annotations else ""
    if stargz and CHUNKED + CHECKSUM in annotations:
        raise TocError("there are two of them, and they may differ: eStargz and zstd:chunked")
    if media_type.endswith((".gzip", "+gzip")) and not chunked:
        return "eStargz"
    if media_type.endswith((".zstd", "+zstd")):
        return "zstd:chunked"
    raise TocError(f"the manifest speaks of one that a layer of the type {media_type} cannot have")


def read_toc(media_type: str, annotations: Mapping[str, str], size: int, read: Callable[[int, int], bytes]) -> Toc:
    """Read the TOC of a layer, whose blob has `size` bytes, and compare it with the manifest's digest.

    `read(offset, length)` gives a range of the blob; what it raises goes through. Raises TocError for a TOC that is not
    exact, or for a layer without one; UnavailableError without zstandard.
    """
    found = toc_format(media_type, annotations)
    if found in ("", "SOCI"):  # a zTOC is not in the layer: ztoc.read_ztoc() reads it
        raise TocError("the manifest speaks of none")
    if found == "eStargz":
        from .estargz import read_estargz  # deferred: descriptors are looked at in many places, and most have no TOC

        return read_estargz(annotations, size, read)
    from .zstd_chunked import read_chunked

    return read_chunked(annotations, size, read)
