"""The layers of an ordinary image that are read by their tables of contents: these are fetched and parsed, once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from ..cache.paths import make_directory
from ..erofs.toc_layer import map_layer
from ..source import kept_layers
from ..source.converted_cache import locked
from ..source.map_file import hold_mapped, keep_map
from ..source.toc_ranges import TocRanges
from ..tar.toc.formats import read_toc
from ..tar.toc.model import TocError
from .cached_layers import STREAMS, HeldLayer, uncollected
from .copy import short_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..config.options import ReadOptions
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

    def get_all(self, layers: Sequence[Descriptor]) -> list[HeldLayer | None]:
        """Return the layers, what is kept of them or what is read now; None where one has to be read whole.

        The caller closes them. Raises RegistryError, ImageError, UnavailableError, OSError.
        """
        make_directory(self.directory)
        make_directory(os.path.join(self.directory, kept_layers.NAME))
        held: list[HeldLayer | None] = []
        with uncollected(), ThreadPoolExecutor(min(STREAMS, len(layers)), "pyerofs-toc") as pool:
            futures = [pool.submit(self._get, layer) for layer in layers]
            try:
                for future in futures:
                    held.append(future.result())
            except BaseException:
                for future in futures:
                    future.cancel()
                for layer in held:
                    if layer is not None:
                        layer.close()
                raise
        return held

    def _get(self, layer: Descriptor) -> HeldLayer | None:
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
                return self._read(layer)
            except TocError as error:
                self.report(
                    f"layer {short_digest(layer.digest)} is read whole: its table of contents cannot be used: {error}"
                )
                return None

    def _read(self, layer: Descriptor) -> HeldLayer:
        ranges = TocRanges(self.blobs.blob(layer.digest, layer.size), self.options.timeout)
        toc = read_toc(layer.media_type, layer.annotations, layer.size, ranges)
        found = map_layer(toc, layer.size, self.allowance)
        kept = kept_layers.save_toc(self.directory, layer, found)
        if kept.device is None:
            return HeldLayer(kept, None)
        return HeldLayer(kept, keep_map(kept.device, found.chunk_map, found.table.device_size, self.directory))
