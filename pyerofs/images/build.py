"""An image out of directories and ready EROFS files, one layer each, base first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..cache.paths import chosen_directory
from ..cache.work import work_directory
from ..erofs import dmverity
from ..erofs.data_map import DataMap
from ..erofs.device_file import DeviceFile
from ..erofs.laying import Laying
from ..erofs.superblock import HEAD, check_checksum, check_size, parse
from ..erofs.tree import Tree
from ..erofs.walk import Walk
from ..erofs.writer import Device, write_metadata
from ..errors import ImageError, UnavailableError, UsageError, cannot
from ..files import regular
from ..oci.image_config import make_manifest, new_config
from .convert import add_config, left_out_line, write_layer
from .copy import Meter
from .layer import BuiltLayer, ImageSource, Recipe
from .standalone import image_source

if TYPE_CHECKING:
    from ..config.options import ReadOptions
    from ..oci.platforms import Platform
    from .writer import CopyWriter


def build_image(
    sources: Sequence[str],
    target: CopyWriter,
    platform: Platform,
    recipe: Recipe,
    options: ReadOptions,
    shown: Meter,
    warn: Callable[[str], None],
) -> str:
    """Make an image of one platform and return the digest of its manifest. Raises PyerofsError.

    `options` say where the cache is, in which files are made; `warn` gets a line for what could not be taken over.
    """
    layers: list[BuiltLayer] = []
    try:
        with work_directory(chosen_directory(options)) as work:
            for number, source in enumerate(sources):
                what = f"layer {number + 1} of {len(sources)}"
                try:
                    with _open(source, recipe, work, warn) as image:
                        made = write_layer(target, image, recipe, {}, work, shown, f"{what}  {source} ->", what)
                except ImageError as error:
                    raise ImageError(f"{source}: {error}") from None
                layers.append(made)
            names = [os.path.basename(os.path.abspath(source)) for source in sources]
            config = new_config(platform, [made.diff_id for made in layers], names)
            add_config(target, config, work)
    except OSError as error:
        raise cannot("build the image", error) from None
    document = make_manifest(config, [made.description for made in layers], {})
    target.add_document(document, root=True)
    return document.digest


@contextlib.contextmanager
def _open(source: str, recipe: Recipe, work: str, warn: Callable[[str], None]) -> Iterator[ImageSource]:
    if os.path.isdir(source):
        with DeviceFile(work) as device:
            yield _of_directory(source, device, warn)
        return
    if not os.path.isfile(source):
        raise UsageError(f"{source} is neither a directory nor an EROFS file")
    try:
        file = open(source, "rb", opener=regular)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UnavailableError(f"cannot read {source}: {error.strerror}") from None
    with file:
        yield _of_file(file.fileno(), recipe)


def _of_directory(source: str, device: DeviceFile, warn: Callable[[str], None]) -> ImageSource:
    tree, contents = Tree(), DataMap()
    laying = Laying(contents, 0, device.land)
    walk = Walk(os.fsencode(source), tree, laying)
    if walk.left_out:
        warn(f"{source}: {left_out_line(walk.left_out)}")
    metadata = write_metadata(tree, walk.root, contents, Device(0, laying.size))
    return image_source(metadata.data, [(laying.size, device.read)])


def _of_file(descriptor: int, recipe: Recipe) -> ImageSource:
    """Return the user's own image, which stays as it is. Raises ImageError for one that no kernel would mount."""
    size = os.fstat(descriptor).st_size
    superblock = parse(os.pread(descriptor, HEAD, 0))
    check_size(superblock, size)
    check_checksum(superblock, os.pread(descriptor, superblock.checked, 0))
    if superblock.extra_devices:
        raise ImageError("the EROFS image needs other devices, and so is no layer by itself")
    padding = 0
    if recipe.verity:
        if superblock.block_size < dmverity.BLOCK:
            raise ImageError(
                f"the EROFS image has blocks of {superblock.block_size} bytes: the kernel cannot mount it by "
                f"dm-verity, which here has blocks of {dmverity.BLOCK}; make it with mkfs.erofs -b{dmverity.BLOCK}"
            )
        padding = -size % dmverity.BLOCK

    def read(offset: int, length: int) -> bytes:
        data = os.pread(descriptor, length, offset)
        if not data:
            raise ImageError("it became shorter while it was read")
        return data

    return ImageSource([(size, read), (padding, lambda _, length: bytes(length))])
