"""Make SOCI indexes of ordinary images, so that others mount these very layers lazily: `pyerofs index`.

Each large layer is read once, and gets a zTOC: its files, and spans by which any part of it can be read. The index that
names the zTOCs either refers to the image's manifest, which stays as it is, or a copy of the manifest names it. The
same image gives the same digests, so that nothing is sent twice.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cache.paths import chosen_directory
from ..cache.work import work_directory
from ..erofs.data_map import DataMap
from ..erofs.foreign import obstacle
from ..erofs.layer_way import judge_layers
from ..erofs.native import is_native
from ..errors import ImageError, cannot
from ..oci import soci
from ..oci.image_config import annotations_of, entries_of, make_index, platform_of, read_config
from ..oci.manifest import INDEX_DEPTH, Descriptor, Index, Manifest, is_attestation, parse
from ..oci.platforms import Platform
from ..oci.raw_manifest import RawManifest, digest_of, platform
from ..source.kept_layers import load_spans
from ..tar.allowance import Allowance
from ..tar.toc.ztoc_writer import compress, write_ztoc
from .cached_layers import NO_SPANS, CachedLayers
from .convert import add_config, read_blob
from .copy import Meter, choose, copy_document, meter, short_digest

if TYPE_CHECKING:
    from ..config.options import ReadOptions
    from ..source.image_reader import ImageReader
    from .cached_layers import HeldLayer
    from .writer import CopyWriter

LAYER_MIN = 10 << 20  # bytes of a layer that gets a zTOC, as with SOCI: all others are fetched at once


class Indexing(NamedTuple):
    """How an image is indexed.

    `refer` writes an index that refers to a manifest, by its digest; None: copies of manifests name their indexes.
    `options` of the source, which say where the cache is; `layer_min`: bytes of a layer.
    """

    refer: Callable[[RawManifest, str], None] | None
    options: ReadOptions
    layer_min: int = LAYER_MIN


class Indexed(NamedTuple):
    """The index that was `made` of a platform's manifest, and what that became, if it was copied."""

    where: Platform | None
    manifest: RawManifest
    made: RawManifest
    bound: RawManifest | None


def index_image(
    origin: ImageReader, target: CopyWriter, how: Indexing, shown: Meter, warn: Callable[[str], None]
) -> tuple[str, list[Indexed]]:
    """Index an image with all its platforms, or what it has for one of them; return what was made.

    In front is the digest of the copy's root, "" where the indexes refer to the image instead.
    `target` is the repository that has the image, under the tag that the copy gets. `warn` gets a line for each layer
    without a zTOC. Raises PyerofsError; ImageError where there is nothing to index.
    """
    directory = chosen_directory(how.options)
    try:
        root = origin.root()
        if how.options.platform:
            root = choose(origin, root, how.options.platform)
        with work_directory(directory) as work:
            run = _IndexRun(origin, target, how, shown, warn, directory, work)
            made = run.document(root, INDEX_DEPTH)
            if not made:
                raise ImageError(f"no layer of it is an archive of {how.layer_min} bytes or more: nothing to index")
            digest = ""
            if how.refer is None:
                bound = run.bound_root(root, made)
                target.add_document(bound, root=True)
                digest = bound.digest
    except ImageError as error:
        raise ImageError(f"{origin.name}: {error}") from None
    except OSError as error:
        raise cannot(f"index {origin.name}", error) from None
    return digest, made


class _IndexRun:
    def __init__(
        self,
        origin: ImageReader,
        target: CopyWriter,
        how: Indexing,
        shown: Meter,
        warn: Callable[[str], None],
        directory: str,
        work: str,
    ) -> None:
        self._origin = origin
        self._target = target
        self._how = how
        self._shown = shown
        self._warn = warn
        self._directory = directory
        self._work = work

    def document(self, document: RawManifest, depth: int) -> list[Indexed]:
        """Index a manifest, or those of an index; all that the results name has been written."""
        found = parse(document.body, document.media_type)
        if isinstance(found, Manifest):
            made = self._manifest(document, found)
            return [made] if made else []
        if not depth:
            raise ImageError(f"its indexes are nested more than {INDEX_DEPTH} deep")
        results = []
        for entry in found.manifests:
            if not is_attestation(entry) and not soci.is_index_entry(entry):
                results += self.document(self._origin.document(entry), depth - 1)
        return results

    def _manifest(self, document: RawManifest, manifest: Manifest) -> Indexed | None:
        if any(is_native(layer.media_type) for layer in manifest.layers):
            self._warn("it has EROFS layers, which are mounted lazily as they are")
            return None
        problem = obstacle(manifest)
        if problem or manifest.config is None:
            raise ImageError(problem)
        config = read_blob(self._origin, manifest.config, self._work)
        _, diff_ids = read_config(config, len(manifest.layers))
        ztocs = self._make_ztocs(manifest, diff_ids)
        if not ztocs:
            return None
        add_config(self._target, soci.EMPTY, self._work)
        where = platform_of(config)
        if self._how.refer:
            index = soci.make_index(ztocs, document.describe())
            self._how.refer(index, document.digest)
            return Indexed(where, document, index, None)
        index = soci.make_index(ztocs, None)
        self._target.add_document(index, root=False)
        copy_document(self._origin, self._target, document, _CopyMeter(self._shown))
        bound = soci.bind(document, index)
        self._target.add_document(bound, root=False)
        return Indexed(where, document, index, bound)

    def _make_ztocs(self, manifest: Manifest, diff_ids: Sequence[str]) -> list[dict[str, Any]]:
        ways = judge_layers(manifest.layers)
        chosen = []
        for number, (layer, way) in enumerate(zip(manifest.layers, ways, strict=True)):
            if way.format:
                self._warn(f"layer {short_digest(layer.digest)} is {way.format}, and read lazily by that")
            elif layer.size >= self._how.layer_min:
                chosen.append(number)
        layers = [manifest.layers[number] for number in chosen]
        if not layers:
            return []
        options = self._how.options
        allowance = Allowance(sum(layer.size for layer in layers), options.unpacked_max)
        with CachedLayers(
            self._origin, self._directory, self._work, options, self._shown, allowance, spans=True
        ) as cached:
            held = cached.get_all(layers, [diff_ids[number] for number in chosen])
            return [row for layer, one in zip(layers, held, strict=True) for row in self._make_ztoc(layer, one)]

    def _make_ztoc(self, layer: Descriptor, held: HeldLayer) -> list[dict[str, Any]]:
        """Write the zTOC of a layer, plain and compressed; return the descriptors."""
        name = f"layer {short_digest(layer.digest)}"
        spans = load_spans(self._directory, held.kept)
        if spans is None:
            self._warn(f"{name} gets no zTOC: {held.kept.table.facts.get(NO_SPANS, 'its spans were not kept')}")
            return []
        try:
            data = write_ztoc(spans, (entry for entry, _ in held.kept.table.entries(DataMap(), 0)))
        except ImageError as error:
            self._warn(f"{name} gets no zTOC: {error}")
            return []
        return [
            self._add(name, soci.PACKED_ZTOC, compress(data), layer, spans.spacing),
            self._add(name, soci.ZTOC, data, layer, spans.spacing),
        ]

    def _add(self, name: str, media_type: str, data: bytes, layer: Descriptor, spacing: int) -> dict[str, Any]:
        path, digest = f"{self._work}/ztoc", digest_of(data)
        with open(path, "wb") as file:
            file.write(data)
        try:
            how = self._target.add_file(digest, path, meter(self._shown, f"{name}: write its zTOC", len(data)))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        kind = "compressed zTOC" if media_type == soci.PACKED_ZTOC else "zTOC"
        self._shown.done(f"{name} -> {kind} {short_digest(digest)}", len(data), how)
        return soci.describe_ztoc(media_type, digest, len(data), layer, spacing)

    def bound_root(self, root: RawManifest, made: Sequence[Indexed]) -> RawManifest:
        """Return the OCI index of the copies and their indexes; all else of the image is in it as it was."""
        found = parse(root.body, root.media_type)
        by_digest = {each.manifest.digest: each for each in made}
        if isinstance(found, Index):
            entries = [self._entry(row, by_digest) for row in self._flat(root, found, INDEX_DEPTH)]
            annotations = annotations_of(root)
        else:
            entries = [self._entry({**root.describe(), **_platform(made[0].where)}, by_digest)]
            annotations = {}
        entries += [soci.index_entry(each.made, each.bound, each.where) for each in made if each.bound]
        return make_index(entries, annotations)

    def _flat(self, document: RawManifest, index: Index, depth: int) -> list[dict[str, Any]]:
        """Return the entries, those of indexes within as well, all of which are copied; no SOCI index of before."""
        rows: list[dict[str, Any]] = []
        for row, entry in zip(entries_of(document), index.manifests, strict=True):
            if soci.is_index_entry(entry):
                continue
            inner = self._origin.document(entry)
            found = parse(inner.body, inner.media_type)
            if isinstance(found, Index):
                rows += self._flat(inner, found, depth - 1)
                continue
            copy_document(self._origin, self._target, inner, _CopyMeter(self._shown))
            rows.append(row)
        return rows

    def _entry(self, row: dict[str, Any], made: dict[str, Indexed]) -> dict[str, Any]:
        found = made.get(row["digest"])
        if found is None or found.bound is None:
            return row
        known = json.loads(found.bound.body)["annotations"]
        return {**row, **found.bound.describe(), "annotations": known}


def _platform(where: Platform | None) -> dict[str, Any]:
    return {"platform": platform(where)} if where else {}


class _CopyMeter:
    """Shows how far copying is, but no line for what is mostly there."""

    def __init__(self, shown: Meter) -> None:
        self.update = shown.update

    def done(self, what: str, size: int, how: str) -> None:
        """Say nothing."""
