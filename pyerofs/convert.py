"""Ordinary images into native ones: each layer's tar stream becomes an EROFS layer; the rest stays as it was.

The same image gives the same digests, with the same version of mkfs.erofs. Needs root, for owners and devices.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

from .copyimage import Meter, choose, meter, short
from .document import Document, digest_of
from .errors import ImageError, UsageError
from .imagedoc import (
    CONFIGS,
    FEATURE,
    annotations_of,
    make_config,
    make_entry,
    make_index,
    make_manifest,
    read_config,
)
from .layermaker import Made, Recipe, make_layer
from .layerstream import LayerStream
from .manifest import MAX_SIZE, Descriptor, Index, Manifest, explain_foreign, is_attestation, native_media_type, parse
from .mkfs import find_mkfs, make_image
from .ordinary import is_convertible
from .place import Origin, Receiver
from .platforms import Platform
from .source import INDEX_DEPTH
from .tarstream import Tar
from .unpack import unpack


def convert_image(origin: Origin, target: Receiver, platform: Platform | None, recipe: Recipe, shown: Meter) -> str:
    """Converts an image with all its platforms, or what it has for one of them. Gives the digest of its root.

    Raises PyerofsError. Layers that have been written before that stay, without a tag.
    """
    if os.geteuid() != 0:
        raise UsageError("convert must be run as root: files get their owners, and devices are made")
    try:
        root = origin.root()
        if platform:
            root = choose(origin, root, platform)
    except ImageError as error:
        raise ImageError(f"{origin.name}: {error}") from None
    return convert_document(origin, target, root, recipe, shown)


def convert_document(
    origin: Origin, target: Receiver, root: Document, recipe: Recipe, shown: Meter, directory: str | None = None
) -> str:
    """As convert_image(), for one document of the image. `directory`: where there is room, on a filesystem that takes
    every kind of file; None: wherever temporary files go."""
    try:
        made = _Conversion(origin, target, recipe, shown, directory).document(root, INDEX_DEPTH, "")
        target.add_document(made, root=True)
    except ImageError as error:
        raise ImageError(f"{origin.name}: {error}") from None
    return made.digest


class _Conversion:
    def __init__(self, origin: Origin, target: Receiver, recipe: Recipe, shown: Meter, directory: str | None) -> None:
        self._origin = origin
        self._target = target
        self._recipe = recipe
        self._shown = shown
        self._directory = directory
        self._mkfs = find_mkfs()

    def document(self, document: Document, depth: int, where: str) -> Document:
        """What becomes of a manifest or an index; all that it names has been written."""
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

    def _manifest(self, manifest: Manifest, where: str) -> Document:
        for layer in manifest.layers:
            if native_media_type(layer.media_type):
                raise ImageError(f"the layer {short(layer.digest)} is EROFS already: copy the image with push or pull")
            if not is_convertible(layer):
                raise ImageError(f"the layer {short(layer.digest)} cannot be converted: it is {explain_foreign(layer)}")
        if manifest.config is None or manifest.config.media_type not in CONFIGS:
            raise ImageError("this is not the image of a container: it has no config of one")
        config, diff_ids = read_config(self._read(manifest.config), len(manifest.layers))
        layers: list[Made] = []
        with tempfile.TemporaryDirectory(prefix="pyerofs-", dir=self._directory) as directory:
            trees: list[bytes] = []  # of the layers so far, the uppermost first
            for number, (layer, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True)):
                what = f"{where}layer {number + 1} of {len(diff_ids)}"
                root = os.fsencode(f"{directory}/{number}")
                os.mkdir(root, 0o700)
                self._unpack(layer, diff_id, root, trees, what)
                trees.insert(0, root)
                image = f"{directory}/{number}.erofs"
                make_image(self._mkfs, os.fsdecode(root), image)
                made = make_layer(image, self._recipe)
                how = self._target.add_layer(made, meter(self._shown, f"{what}: write", made.size))
                os.unlink(image)
                self._shown.done(f"{what}  {short(layer.digest)} -> {short(made.digest)}", made.size, how)
                layers.append(made)
            body = make_config(config, [made.diff_id for made in layers])
            add_config(self._target, body, directory)
        return make_manifest(body, [made.description for made in layers], manifest.annotations)

    def _unpack(self, layer: Descriptor, diff_id: str, root: bytes, lowers: Sequence[bytes], what: str) -> None:
        name = f"layer {short(layer.digest)}"
        progress = meter(self._shown, f"{what}: read", layer.size)
        with self._origin.blob(layer, self._directory, progress) as path, open(path, "rb") as file:
            stream = LayerStream(file)
            try:
                unpack(Tar(stream.read), root, lowers)
                digest = stream.finish()
            except ImageError as error:
                raise ImageError(f"{name}: {error}") from None
        if digest != diff_id:
            raise ImageError(f"{name} has another content than the config says: {digest} instead of {diff_id}")

    def _read(self, config: Descriptor) -> bytes:
        if config.size > MAX_SIZE:
            raise ImageError(f"the image's config has {config.size} bytes; at most {MAX_SIZE} are read")
        with self._origin.blob(config, self._directory, lambda done: None) as path, open(path, "rb") as file:
            return file.read()


def add_config(target: Receiver, body: bytes, directory: str) -> None:
    """Writes a config; `directory`: where there is room for a moment."""
    path = f"{directory}/config"
    with open(path, "wb") as file:
        file.write(body)
    target.add_file(digest_of(body), path, lambda done: None)


def _ordinary(index: Index) -> list[Descriptor]:
    """The entries to convert: no attestations, and no EROFS manifest beside the ordinary one that it was made of."""
    images = [entry for entry in index.manifests if not is_attestation(entry)]
    ordinary = [entry for entry in images if not (entry.platform and FEATURE in entry.platform.os_features)]
    found = ordinary or images
    if not found:
        raise ImageError("its index is empty")
    return found
