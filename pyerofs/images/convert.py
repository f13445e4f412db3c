"""Ordinary images into native ones: each layer becomes an EROFS layer, or all become one; the rest stays as it was.

The same image gives the same digests, on any machine and filesystem and for any user. Nothing is unpacked, and nothing
needs root. Layers are read through the cache: those that were converted before are neither fetched nor read again.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cache.paths import chosen_directory
from ..cache.work import work_directory
from ..erofs.foreign import obstacle
from ..erofs.merge import LayerContent, MergedImage, merge_layers
from ..erofs.native import is_native
from ..errors import ImageError, cannot
from ..oci import image_config
from ..oci.image_config import annotations_of, make_config, make_entry, make_index, make_manifest, read_config
from ..oci.manifest import INDEX_DEPTH, MAX_SIZE, Descriptor, Index, Manifest, is_attestation, listed, nothing_in, parse
from ..oci.raw_manifest import RawManifest, digest_of
from ..tar.allowance import Allowance
from ..tar.reader import show
from .copy import Meter, choose, copy_document, meter, short_digest
from .layer import SOURCE_CHAIN, SOURCE_RECIPE, BuiltLayer, ImageSource, Recipe, make_layer
from .made_layers import MadeLayers
from .standalone import StandaloneLayers, image_source

if TYPE_CHECKING:
    from ..config.options import ReadOptions
    from ..erofs.storable_xattrs import LeftOut
    from ..erofs.trace import Trace
    from ..source.image_reader import ImageReader
    from .cached_layers import HeldLayer
    from .writer import CopyWriter, ImageWriter


class Conversion(NamedTuple):
    """How an image is converted.

    `recipe` of its layers; `both`: the ordinary image goes along, in one index with what it became; `options` of the
    source, which say where the cache is; `made`: layers that the destination has; `trace`: by which the data are
    arranged, the one of the recipe's digest.
    """

    recipe: Recipe
    both: bool
    options: ReadOptions
    made: MadeLayers
    trace: Trace | None = None


def convert_image(
    origin: ImageReader, target: CopyWriter, how: Conversion, shown: Meter, warn: Callable[[str], None]
) -> str:
    """Convert an image with all its platforms, or what it has for one of them; return the digest of its root.

    `warn` gets a line for what could not be taken over. Raises PyerofsError. Layers that have been written before that
    stay, without a tag; layers that have been read stay in the cache.
    """
    directory = chosen_directory(how.options)
    try:
        root = origin.root()
        if how.options.platform:
            root = choose(origin, root, how.options.platform)
        with work_directory(directory) as work:
            run = _Run(origin, target, how, shown, warn, directory, work)
            made = run.both(root) if how.both else run.document(root, INDEX_DEPTH, "")
            target.add_document(made, root=True)
    except ImageError as error:
        raise ImageError(f"{origin.name}: {error}") from None
    except OSError as error:
        raise cannot(f"convert {origin.name}", error) from None
    return made.digest


class _Run:
    def __init__(
        self,
        origin: ImageReader,
        target: CopyWriter,
        how: Conversion,
        shown: Meter,
        warn: Callable[[str], None],
        directory: str,
        work: str,
    ) -> None:
        self._origin = origin
        self._target = target
        self._how = how
        self._recipe = how.recipe
        self._shown = shown
        self._warn = warn
        self._directory = directory
        self._work = work

    def document(self, document: RawManifest, depth: int, where: str) -> RawManifest:
        """Convert a manifest or an index; all that the result names has been written."""
        found = parse(document.body, document.media_type)
        if isinstance(found, Manifest):
            return self._manifest(found, where)
        return make_index(self._entries(found, depth), annotations_of(document))

    def _entries(self, index: Index, depth: int) -> list[dict[str, Any]]:
        if not depth:
            raise ImageError(f"its indexes are nested more than {INDEX_DEPTH} deep")
        entries = []
        for entry in _ordinary(index):
            made = self.document(self._origin.document(entry), depth - 1, f"{entry.platform or 'unnamed'} ")
            self._target.add_document(made, root=False)
            entries.append(make_entry(made, entry))
        return entries

    def both(self, document: RawManifest) -> RawManifest:
        """Convert it into an index: what was there first, as it is, for whoever does not know EROFS."""
        found = parse(document.body, document.media_type)
        if isinstance(found, Manifest):
            made = self._manifest(found, "")
            copy_document(self._origin, self._target, document, self._shown)
            self._target.add_document(made, root=False)
            assert found.config is not None  # noqa: S101 - it was read
            where = image_config.platform_of(read_blob(self._origin, found.config, self._work))
            entry = Descriptor(document.media_type, document.digest, len(document.body), platform=where)
            return make_index([image_config.describe_entry(entry), make_entry(made, entry)], {})
        made_entries = self._entries(found, INDEX_DEPTH)
        before = {entry.digest for entry in found.manifests if not _is_erofs(entry)}
        for entry in found.manifests:
            if entry.digest in before:
                copy_document(self._origin, self._target, self._origin.document(entry), self._shown)
        kept = [entry for entry in image_config.entries_of(document) if entry["digest"] in before]
        return make_index([*kept, *made_entries], annotations_of(document))

    def _manifest(self, manifest: Manifest, where: str) -> RawManifest:
        for layer in manifest.layers:
            if is_native(layer.media_type):
                raise ImageError(
                    f"the layer {short_digest(layer.digest)} is EROFS already: copy the image with push or pull"
                )
        problem = obstacle(manifest)
        if problem or manifest.config is None:
            raise ImageError(problem)
        config, diff_ids = read_config(read_blob(self._origin, manifest.config, self._work), len(manifest.layers))
        chains = image_config.chain_ids(diff_ids)
        if self._recipe.merge:
            chains = chains[-1:]
            config = image_config.with_one_layer(config)
        ready = [self._find_made(chain) for chain in chains]
        if chains and all(ready):
            layers = [layer for layer in ready if layer]
            for number, made in enumerate(layers):
                what = f"all {len(diff_ids)} layers" if self._recipe.merge else f"layer {number + 1} of {len(layers)}"
                self._say(f"{where}{what}", made, "already there")
        else:
            layers = self._make(manifest.layers, diff_ids, chains, ready, where)
        body = make_config(config, [made.diff_id for made in layers])
        add_config(self._target, body, self._work)
        return make_manifest(body, [made.description for made in layers], manifest.annotations)

    def _find_made(self, chain: str) -> BuiltLayer | None:
        found = self._how.made.find(chain, self._recipe)
        return found if found and self._target.has_blob(found.digest, found.size) else None

    def _make(
        self,
        layers: Sequence[Descriptor],
        diff_ids: Sequence[str],
        chains: Sequence[str],
        ready: Sequence[BuiltLayer | None],
        where: str,
    ) -> list[BuiltLayer]:
        from .cached_layers import CachedLayers  # deferred: it imports what reads, which moving images does not need

        options = self._how.options
        allowance = Allowance(sum(layer.size for layer in layers), options.unpacked_max)
        quiet = _Quiet(self._shown)
        found = []
        with CachedLayers(
            self._origin, self._directory, self._work, options, quiet, allowance, where, copied=True
        ) as cached:
            cached.begin(layers, diff_ids)  # each is written while those above it are read
            if self._recipe.merge:
                held = [cached.get(number) for number in range(len(layers))]
                return [self._write(self._merged(held, where), chains[0], f"{where}all {len(layers)} layers ")]
            stack = StandaloneLayers(
                lambda number, offset, length: cached.get(number).read(offset, length),
                self._work,
                self._how.trace,
                _uppermost([cached.get(number) for number in range(len(layers))], self._how.trace)
                if self._how.trace
                else _all,
            )
            with contextlib.closing(stack):
                for number, (layer, chain, made) in enumerate(zip(layers, chains, ready, strict=True)):
                    what = f"{where}layer {number + 1} of {len(layers)}"
                    table = cached.get(number).kept.table
                    try:
                        stack.begin(table)
                    except ImageError as error:
                        raise ImageError(f"layer {short_digest(layer.digest)}: {error}") from None
                    if made is None:
                        made = self._write(stack.image(), chain, f"{what}  {short_digest(layer.digest)} ->", what)
                    else:
                        self._say(what, made, "already there")
                    stack.merge()
                    found.append(made)
            self._warn_of(stack.left_out, where)
        return found

    def _merged(self, held: Sequence[HeldLayer], where: str) -> ImageSource:
        contents = [LayerContent(layer.kept.digest, layer.kept.table) for layer in held]
        merged = merge_layers(contents, small_max=None, trace=self._how.trace)
        self._warn_of(merged.left_out, where)
        return image_source(merged.metadata.data, list(_parts_of(merged, held)), merged.parts, merged.hot)

    def _write(self, image: ImageSource, chain: str, said: str, what: str = "") -> BuiltLayer:
        about = {SOURCE_CHAIN: chain, SOURCE_RECIPE: str(self._recipe)}
        return write_layer(self._target, image, self._recipe, about, self._work, self._shown, said, what)

    def _say(self, what: str, made: BuiltLayer, how: str) -> None:
        self._shown.done(f"{what}  {short_digest(made.digest)}", made.size, how)

    def _warn_of(self, left_out: Counter[LeftOut], where: str) -> None:
        if left_out:
            self._warn(f"{where}{left_out_line(left_out)}")


def _all(number: int, path: bytes) -> bool:
    return True


def _uppermost(held: Sequence[HeldLayer], trace: Trace) -> Callable[[int, bytes], bool]:
    """Return what tells whether a layer is the last one with an entry of a name that the trace has."""
    wanted = {path.strip(b"/"): path for path in trace.files}
    last: dict[bytes, int] = {}
    for number, layer in enumerate(held):
        for name in layer.kept.table.names():
            path = wanted.get(name.removeprefix(b"./").strip(b"/"))
            if path is not None:
                last[path] = number
    return lambda number, path: last.get(path, number) == number


class _Quiet:
    """Shows how far reading is, but no line for a layer that was read: it gets one when it has been written."""

    def __init__(self, shown: Meter) -> None:
        self.update = shown.update

    def done(self, what: str, size: int, how: str) -> None:
        """Say nothing."""


def _parts_of(merged: MergedImage, held: Sequence[HeldLayer]) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
    """Yield what the merged image keeps of its layers' contents: how much, and what reads it."""
    begins = list(accumulate((held[number].kept.table.device_size for number in merged.primary), initial=0))
    for start, length in merged.kept or ():
        end = start + length
        while start < end:  # it may go over from one layer to the next
            at = bisect_right(begins, start) - 1
            stop = min(end, begins[at + 1])
            yield stop - start, partial(_read_at, held[merged.primary[at]], start - begins[at])
            start = stop


def _read_at(layer: HeldLayer, base: int, offset: int, length: int) -> bytes:
    return layer.read(base + offset, length)


def write_layer(
    target: ImageWriter,
    image: ImageSource,
    recipe: Recipe,
    about: dict[str, str],
    work: str,
    shown: Meter,
    said: str,
    what: str = "",
) -> BuiltLayer:
    """Make an image a layer, and write it. Raises PyerofsError, OSError.

    `work`: a directory for files; `said` of it when it is done, `what` meanwhile.
    """
    with target.scratch(work) as directory:
        path = f"{directory}/layer"
        try:
            name = what or said.strip()
            made = make_layer(image, path, recipe, about, meter(shown, f"{name}: write", image.size))
            how = target.add_layer(made, meter(shown, f"{name}: store", made.size))
        finally:
            with contextlib.suppress(FileNotFoundError):  # a layout takes it as it is
                os.unlink(path)
    shown.done(f"{said} {short_digest(made.digest)}", made.size, how)
    return made


def read_blob(origin: ImageReader, config: Descriptor, directory: str | None = None) -> bytes:
    """Return an image's config; `directory`: where there is room. Raises ImageError, RegistryError."""
    if config.size > MAX_SIZE:
        raise ImageError(f"the image's config has {config.size} bytes; at most {MAX_SIZE} are read")
    with origin.blob(config, directory, lambda done: None) as path, open(path, "rb") as file:
        return file.read()


def add_config(target: ImageWriter, body: bytes, directory: str) -> None:
    """Write a config; `directory`: where there is room for a moment."""
    path = f"{directory}/config"
    with open(path, "wb") as file:
        file.write(body)
    target.add_file(digest_of(body), path, lambda done: None)


def left_out_line(found: Counter[LeftOut]) -> str:
    """Say in one line which extended attributes could not be taken over."""
    kinds = [f"{show(os.fsencode(what.name))} of {what.kind} ({count})" for what, count in found.most_common()]
    return f"left out {found.total()} extended attributes that Linux cannot store: {listed(kinds)}"


def _ordinary(index: Index) -> list[Descriptor]:
    """Return the entries to convert: no attestations, and no EROFS manifest beside the ordinary one it was made of."""
    images = [entry for entry in index.manifests if not is_attestation(entry)]
    ordinary = [entry for entry in images if not _is_erofs(entry)]
    found = ordinary or images
    if not found:
        raise ImageError(nothing_in(index))
    return found


def _is_erofs(entry: Descriptor) -> bool:
    return entry.platform is not None and image_config.FEATURE in entry.platform.os_features
