"""An image's layers opened to be read here, without any mount: the same plan as a mount's, over the same cache."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from ..cache.manifests import ManifestCache
from ..cache.paths import chosen_directory
from ..context import ignore
from ..erofs.foreign import NotErofsError
from ..erofs.reader import ErofsReader
from ..erofs.stacked import StackedTree
from ..errors import ImageError
from ..export.base import Export
from ..source import converted_cache
from ..source.local import LocalSource
from ..source.open import plan_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..config.options import ReadOptions
    from ..context import Context
    from ..erofs.compose import PlannedLayer
    from ..oci.location import Location
    from ..source.base import Opener, Source
    from .copy import Meter


class OpenedImage:
    """The layers of an image as one tree. Owns their exports until close(). Thread-safe.

    `tree`: what a mount shows; `sources`: for each of its layers what its devices hold, the primary one first.
    """

    def __init__(self, location: Location, options: ReadOptions, context: Context, shown: Meter | None = None) -> None:
        """Open the image, converting one of ordinary layers first. Raises PyerofsError."""
        self._held = ExitStack()
        self._options, self._context = options, context
        self.sources: list[tuple[str, ...]] = []
        try:
            self.tree = self._open(location, shown)
        except BaseException:
            self._held.close()
            raise

    def _open(self, location: Location, shown: Meter | None) -> StackedTree:
        if location.is_file:
            export = self._export(LocalSource(location.path))
            return self._tree([("lower", [export])], location)
        with ExitStack() as stack:
            parts = self._plan(location, shown, stack)
            exports = {part.layer: self._export(open_(self._context)) for part, open_ in parts}
            layers = [
                (part.role, [exports[part.layer], *(exports[number] for number in part.devices)])
                for part, _ in parts
                if part.role != "device"
            ]
        return self._tree(layers, location)

    def _plan(self, location: Location, shown: Meter | None, stack: ExitStack) -> Sequence[tuple[PlannedLayer, Opener]]:
        manifests = ManifestCache(chosen_directory(self._options), self._context.log)
        try:
            return plan_layers(location, self._options, context=self._context, manifests=manifests)
        except NotErofsError as ordinary:

            def convert(request: converted_cache.ConversionRequest) -> bool:
                from .convert_cache import convert as convert_image
                from .progress import Console, Lines

                meter = shown or Lines(Console(ignore, None))
                stack.enter_context(convert_image(request, self._options, self._context.log, meter))
                return True

            image = stack.enter_context(converted_cache.get_converted(location, ordinary, self._options, convert))
            return image.parts(location, self._options)

    def _export(self, source: LocalSource | Source) -> Export:
        export = Export(source, self._options, self._context)
        self._held.callback(export.close)
        return export

    def _tree(self, layers: Sequence[tuple[str, Sequence[Export]]], location: Location) -> StackedTree:
        lowers: list[ErofsReader] = []
        lenders: list[ErofsReader] = []
        names: list[tuple[str, ...]] = []
        for role, exports in sorted(layers, key=lambda layer: layer[0] != "lower"):
            primary, *devices = exports
            try:
                reader = ErofsReader(_fill(primary), primary.size, [(_fill(device), device.size) for device in devices])
            except ImageError as error:
                raise ImageError(f"{location}: {error}") from None
            (lowers if role == "lower" else lenders).append(reader)
            names.append(tuple(export.source.digest for export in exports))
        self.sources = names
        return StackedTree(lowers, lenders)

    def close(self) -> None:
        """End reads that are under way, and let go of everything."""
        self._held.close()


def _fill(export: Export) -> Callable[[memoryview, int], None]:
    return partial(_read, export)


def _read(export: Export, view: memoryview, offset: int) -> None:
    if view:
        export.read_into(view, offset)
