"""The layers of an ordinary image that are read by their tables of contents: these are fetched and parsed, once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from ..cache.paths import make_directory
from ..erofs.chunk_map import ChunkMap
from ..erofs.toc_layer import map_layer
from ..errors import ImageError
from ..source import kept_layers
from ..source.converted_cache import locked
from ..source.map_file import hold_mapped, keep_map
from ..source.soci_index import read_ztoc_of
from ..source.toc_ranges import TocRanges, verify_blob
from ..source.unit_reader import device_contents
from ..tar.toc.formats import read_toc, toc_format
from ..tar.toc.model import TocError
from .cached_layers import STREAMS, HeldLayer, uncollected
from .copy import short_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..config.options import ReadOptions
    from ..erofs.layer_way import LayerWay
    from ..erofs.toc_layer import TocLayer
    from ..oci.manifest import Descriptor
    from ..source.blobs import BlobStore
    from ..tar.allowance import Allowance


class LazyLayers(NamedTuple):
    """Reads tables of contents of one image's layers, at the same time. `blobs` has them; `directory`: the cache's.

    `allowance`: bytes that all layers may have; `report` gets a line for each layer that has to be read whole.
    """

    blobs: BlobStore
    directory: str
    options: ReadOptions
    allowance: Allowance
    report: Callable[[str], None]

    def get_all(self, layers: Sequence[tuple[Descriptor, LayerWay]]) -> list[HeldLayer | None]:
        """Return the layers, what is kept of them or what is read now; None where one has to be read as a stream.

        Those that are not lazy are fetched at once, with their contents. The caller closes all of them. Raises
        RegistryError, ImageError, UnavailableError, OSError.
        """
        make_directory(self.directory)
        make_directory(os.path.join(self.directory, kept_layers.NAME))
        held: list[HeldLayer | None] = []
        with uncollected(), ThreadPoolExecutor(min(STREAMS, len(layers)), "pyerofs-toc") as pool:
            futures = [pool.submit(self._get, layer, way) for layer, way in layers]
            try:
                for future in futures:
                    held.append(future.result())
            except BaseException:
                for future in futures:
                    future.cancel()
                for found in held:
                    if found is not None:
                        found.close()
                raise
        return held

    def _get(self, layer: Descriptor, way: LayerWay) -> HeldLayer | None:
        name = kept_layers.toc_name(layer)
        with locked(kept_layers.path_of(self.directory, name), lambda: None):
            kept = kept_layers.load(self.directory, name)
            if kept is not None:
                if kept.device is None:
                    return HeldLayer(kept, None)
                entry = hold_mapped(self.directory, kept.device)
                if entry is not None:
                    return HeldLayer(kept, entry)
            try:
                return self._read_lazily(layer) if way.lazy else self._read_at_once(layer)
            except TocError as error:
                self.report(
                    f"layer {short_digest(layer.digest)} is read whole: its table of contents cannot be used: {error}"
                )
                return None

    def _read_lazily(self, layer: Descriptor) -> HeldLayer:
        return self._keep(layer, self._map(layer, self._ranges(layer)))

    def _read_at_once(self, layer: Descriptor) -> HeldLayer:
        """Fetch a small layer by one request, and take its contents out of it, unless they are not small."""
        blob = self._ranges(layer)(0, layer.size)
        verify_blob(blob, layer)
        found = self._map(layer, lambda offset, length: blob[offset : offset + length])
        if found.table.device_size > kept_layers.CONTENTS_MAX:
            return self._keep(layer, found)
        try:
            contents = device_contents(ChunkMap(found.chunk_map), blob)
        except ImageError as error:
            raise TocError(str(error)) from None
        return HeldLayer(kept_layers.save_toc(self.directory, layer, found, contents), None)

    def _ranges(self, layer: Descriptor) -> TocRanges:
        return TocRanges(self.blobs.blob(layer.digest, layer.size), self.options.timeout)

    def _map(self, layer: Descriptor, read: Callable[[int, int], bytes]) -> TocLayer:
        if toc_format(layer.media_type, layer.annotations) == "SOCI":
            toc = read_ztoc_of(layer, self.blobs, self.options.timeout)
        else:
            toc = read_toc(layer.media_type, layer.annotations, layer.size, read)
        return map_layer(toc, layer.size, self.allowance)

    def _keep(self, layer: Descriptor, found: TocLayer) -> HeldLayer:
        kept = kept_layers.save_toc(self.directory, layer, found)
        if kept.device is None:
            return HeldLayer(kept, None)
        return HeldLayer(kept, keep_map(kept.device, found.chunk_map, found.table.device_size, self.directory))
