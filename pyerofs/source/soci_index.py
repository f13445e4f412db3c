"""The SOCI index of an image: found where the image names it or an option allows it, and the zTOCs that it has.

Each is fetched by its digest. What the image's manifest names is vouched for by that. What only refers to the image may
be anyone's who may push to the repository, and is used where the user says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ImageError, RegistryError
from ..oci.manifest import Descriptor, Index, Manifest, parse
from ..oci.reference import is_digest
from ..oci.soci import LayerIndex, bound_digest, layer_indexes, referring_digests
from ..retry import patiently
from ..tar.toc.formats import toc_format
from ..tar.toc.keys import SOCI_ZTOC
from ..tar.toc.model import Toc, TocError
from .blob_stream import BlobStream
from .image_reader import ImageReader, RegistryReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config.options import ReadOptions
    from .blobs import BlobStore

_PATIENCE = 15.0  # seconds without a byte: an image can be mounted without its index
_INDEXES_MAX = 16  # that refer to one image, and are looked at


class IndexedManifest(NamedTuple):
    """`manifest`, whose layers name their zTOCs; `unbound`: the digest of the index, unless the manifest names that."""

    manifest: Manifest
    unbound: str


def with_ztocs(
    manifest: Manifest, digest: str, reader: ImageReader, options: ReadOptions, report: Callable[[str], None]
) -> IndexedManifest:
    """Return the manifest with what its SOCI index says of its layers, if it has one that may be used.

    `digest` of the manifest; `report` gets a line where an index is no good, or cannot be had.
    """
    none = IndexedManifest(manifest, "")
    if options.soci == "no":
        return none
    try:
        bound = bound_digest(manifest)
        if is_digest(options.soci):
            found = _get_index(options.soci, reader)
            return IndexedManifest(_enriched(manifest, found), "" if options.soci == bound else options.soci)
        if bound:
            return IndexedManifest(_enriched(manifest, _get_index(bound, reader)), "")
        if options.soci == "v1" and options.verify != "require" and isinstance(reader, RegistryReader):
            return _referring(manifest, digest, reader, options) or none
    except (ImageError, RegistryError) as error:
        report(f"its SOCI index cannot be used: {error}")
    return none


def _get_index(digest: str, reader: ImageReader) -> dict[str, LayerIndex]:
    found = parse(reader.document(Descriptor("", digest, 0)).body)
    if not isinstance(found, Manifest):
        raise ImageError("it is no SOCI index")
    return layer_indexes(found)


def _referring(manifest: Manifest, digest: str, reader: RegistryReader, options: ReadOptions) -> IndexedManifest | None:
    """Use the first index that refers to the manifest, and has something for its layers."""
    answer = patiently(
        lambda left: reader.registry.get_referrers(digest, None, left), lambda: False, min(options.timeout, _PATIENCE)
    )
    listed = parse(answer.body, answer.media_type) if answer else None
    if not isinstance(listed, Index):
        return None
    for each in referring_digests(listed)[:_INDEXES_MAX]:
        found = _enriched(manifest, _get_index(each, reader))
        if found is not manifest:
            return IndexedManifest(found, each)
    return None


def _enriched(manifest: Manifest, indexes: dict[str, LayerIndex]) -> Manifest:
    """Return the manifest with a zTOC in the annotations of each layer that has one, and no TOC of its own."""
    layers = []
    for layer in manifest.layers:
        found = indexes.get(layer.digest)
        try:
            own = toc_format(layer.media_type, layer.annotations)
        except TocError:
            own = ""
        about = {**layer.annotations, SOCI_ZTOC: _place(found)} if found and not own else layer.annotations
        layers.append(replace(layer, annotations=about))
    return replace(manifest, layers=tuple(layers)) if tuple(layers) != manifest.layers else manifest


def _place(found: LayerIndex) -> str:
    parts = [found.ztoc, found.prefetch] if found.prefetch else [found.ztoc]
    return ",".join(f"{part.digest},{part.size}" for part in parts)


def read_ztoc_of(layer: Descriptor, blobs: BlobStore, timeout: float) -> Toc:
    """Fetch the zTOC that the layer's annotation names, and read it. Raises TocError."""
    from ..tar.toc.ztoc import PREFETCH_MAX, ZTOC_MAX, read_ztoc, unpack_ztoc  # deferred: few images have one

    words = layer.annotations[SOCI_ZTOC].split(",")
    if len(words) not in (2, 4) or not all(map(is_digest, words[::2])) or not all(map(str.isdecimal, words[1::2])):
        raise TocError("it is not named as it should be")
    data = _fetch(blobs, words[0], int(words[1]), ZTOC_MAX, timeout)
    prefetch = _fetch(blobs, words[2], int(words[3]), PREFETCH_MAX, timeout) if len(words) == 4 else b""
    return read_ztoc(unpack_ztoc(data), layer.size, prefetch)


def _fetch(blobs: BlobStore, digest: str, size: int, most: int, timeout: float) -> bytes:
    """Return a blob, which has its digest. Raises TocError where it cannot be had: then the layer is read whole."""
    if size > most:
        raise TocError(f"it has {size} bytes; at most {most} are taken")
    found = bytearray()
    try:
        with BlobStream(blobs.blob(digest, size), min(timeout, _PATIENCE)) as stream:
            while piece := stream.read(1 << 20):
                found += piece
            stream.finish()
    except (ImageError, RegistryError) as error:
        raise TocError(str(error)) from None
    return bytes(found)
