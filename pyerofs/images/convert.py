"""Ordinary images into native ones: each layer's tar stream becomes an EROFS layer; the rest stays as it was.

The same image gives the same digests, with the same version of mkfs.erofs. Needs root, for owners and devices.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence

from ..erofs.foreign import obstacle
from ..erofs.native import is_native
from ..errors import ImageError, UsageError
from ..oci.image_config import FEATURE, annotations_of, make_config, make_entry, make_index, make_manifest, read_config
from ..oci.manifest import INDEX_DEPTH, MAX_SIZE, Descriptor, Index, Manifest, is_attestation, listed, nothing_in, parse
from ..oci.platforms import Platform
from ..oci.raw_manifest import RawManifest, digest_of
from ..source.image_reader import ImageReader
from ..tar.allowance import Allowance
from ..tar.decompress import LayerStream
from ..tar.reader import Tar, show
from ..tar.unpack import LeftOut, unpack
from .copy import Meter, choose, meter, short_digest
from .layer import BuiltLayer, Recipe, make_layer
from .mkfs import find_mkfs, make_image
from .writer import ImageWriter


def convert_image(
    origin: ImageReader,
    target: ImageWriter,
    platform: Platform | None,
    recipe: Recipe,
    shown: Meter,
    warn: Callable[[str], None],
    unpacked_max: int | None = None,
) -> str:
    """Convert an image with all its platforms, or what it has for one of them; return the digest of its root.

    `warn` gets a line for what could not be taken over; `unpacked_max`: bytes that its layers may decompress to, None
    for what their size allows. Raises PyerofsError. Layers that have been written before that stay, without a tag.
    """
    if os.geteuid() != 0:
        raise UsageError("convert must be run as root: it sets owners and makes devices")
    try:
        root = origin.root()
        if platform:
            root = choose(origin, root, platform)
    except ImageError as error:
        raise ImageError(f"{origin.name}: {error}") from None
    return convert_document(origin, target, root, recipe, shown, warn, unpacked_max)


def convert_document(
    origin: ImageReader,
    target: ImageWriter,
    root: RawManifest,
    recipe: Recipe,
    shown: Meter,
    warn: Callable[[str], None],
    unpacked_max: int | None = None,
    directory: str | None = None,
) -> str:
    """Convert one document of the image, as convert_image() does.

    `directory`: where there is room, on a filesystem that takes every kind of file; None: wherever temporary files go.
    """
    try:
        work = _Conversion(origin, target, recipe, shown, warn, unpacked_max, directory)
        made = work.document(root, INDEX_DEPTH, "")
        target.add_document(made, root=True)
    except ImageError as error:
        raise ImageError(f"{origin.name}: {error}") from None
    return made.digest


class _Conversion:
    def __init__(
        self,
        origin: ImageReader,
        target: ImageWriter,
        recipe: Recipe,
        shown: Meter,
        warn: Callable[[str], None],
        unpacked_max: int | None,
        directory: str | None,
    ) -> None:
        self._warn = warn
        self._unpacked_max = unpacked_max
        self._origin = origin
        self._target = target
        self._recipe = recipe
        self._shown = shown
        self._directory = directory
        self._mkfs = find_mkfs()

    def document(self, document: RawManifest, depth: int, where: str) -> RawManifest:
        """Convert a manifest or an index; all that the result names has been written."""
        found = parse(document.body, document.media_type)
        if isinstance(found, Manifest):
            return self._manifest(found, where)
        if not depth:
            raise ImageError(f"its indexes are nested more than {INDEX_DEPTH} deep")
        entries = []
        for entry in _ordinary(found):
            made = self.document(self._origin.document(entry), depth - 1, f"{entry.platform or 'unnamed'} ")
            self._target.add_document(made, root=False)
            entries.append(make_entry(made, entry))
        return make_index(entries, annotations_of(document))

    def _manifest(self, manifest: Manifest, where: str) -> RawManifest:
        for layer in manifest.layers:
            if is_native(layer.media_type):
                raise ImageError(
                    f"the layer {short_digest(layer.digest)} is EROFS already: copy the image with push or pull"
                )
        problem = obstacle(manifest)
        if problem or manifest.config is None:
            raise ImageError(problem)
        config, diff_ids = read_config(read_blob(self._origin, manifest.config, self._directory), len(manifest.layers))
        layers: list[BuiltLayer] = []
        with tempfile.TemporaryDirectory(prefix="pyerofs-", dir=self._directory) as directory:
            trees: list[bytes] = []  # of the layers so far, the uppermost first
            left_out: Counter[LeftOut] = Counter()
            allowance = Allowance(sum(layer.size for layer in manifest.layers), self._unpacked_max)
            for number, (layer, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True)):
                what = f"{where}layer {number + 1} of {len(diff_ids)}"
                root = os.fsencode(f"{directory}/{number}")
                os.mkdir(root, 0o700)
                left_out += self._unpack(layer, diff_id, root, trees, allowance, what)
                trees.insert(0, root)
                image = f"{directory}/{number}.erofs"
                make_image(self._mkfs, os.fsdecode(root), image)
                made = make_layer(image, self._recipe)
                how = self._target.add_layer(made, meter(self._shown, f"{what}: write", made.size))
                os.unlink(image)
                self._shown.done(f"{what}  {short_digest(layer.digest)} -> {short_digest(made.digest)}", made.size, how)
                layers.append(made)
            if left_out:
                self._warn(f"{where}{_left_out(left_out)}")
            body = make_config(config, [made.diff_id for made in layers])
            add_config(self._target, body, directory)
        return make_manifest(body, [made.description for made in layers], manifest.annotations)

    def _unpack(
        self, layer: Descriptor, diff_id: str, root: bytes, lowers: Sequence[bytes], allowance: Allowance, what: str
    ) -> Counter[LeftOut]:
        name = f"layer {short_digest(layer.digest)}"
        progress = meter(self._shown, f"{what}: read", layer.size)
        with self._origin.blob(layer, self._directory, progress) as path, open(path, "rb") as file:
            stream = LayerStream(file, diff_id.partition(":")[0], allowance)
            try:
                left_out = unpack(Tar(stream.read), root, lowers, allowance.take)
                digest = stream.finish()
            except ImageError as error:
                raise ImageError(f"{name}: {error}") from None
        if digest != diff_id:
            raise ImageError(f"{name} has another content than the config says: {digest} instead of {diff_id}")
        return left_out


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


def _left_out(found: Counter[LeftOut]) -> str:
    """Say in one line which extended attributes are not in the image."""
    kinds = [f"{show(os.fsencode(what.name))} of {what.kind} ({count})" for what, count in found.most_common()]
    return f"left out {found.total()} extended attributes that Linux cannot store: {listed(kinds)}"


def left_out_line(found: Counter[str]) -> str:
    """Say in one line which extended attributes could not be taken over."""
    kinds = [f"{show(os.fsencode(what))} ({count})" for what, count in found.most_common()]
    return f"left out {found.total()} extended attributes that Linux cannot store: {listed(kinds)}"


def _ordinary(index: Index) -> list[Descriptor]:
    """Return the entries to convert: no attestations, and no EROFS manifest beside the ordinary one it was made of."""
    images = [entry for entry in index.manifests if not is_attestation(entry)]
    ordinary = [entry for entry in images if not (entry.platform and FEATURE in entry.platform.os_features)]
    found = ordinary or images
    if not found:
        raise ImageError(nothing_in(index))
    return found
