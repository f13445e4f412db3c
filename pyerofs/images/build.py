"""An image out of directories and ready EROFS files, one layer each, base first."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence

from ..errors import ImageError, UnavailableError, UsageError
from ..oci.image_config import make_manifest, new_config
from ..oci.platforms import Platform
from .convert import add_config
from .copy import Meter, meter, short_digest
from .layer import BuiltLayer, Recipe, make_layer
from .mkfs import find_mkfs, make_image
from .writer import CopyWriter


def build_image(sources: Sequence[str], target: CopyWriter, platform: Platform, recipe: Recipe, shown: Meter) -> str:
    """Make an image of one platform and return the digest of its manifest. Raises PyerofsError."""
    mkfs = None
    layers: list[BuiltLayer] = []
    with tempfile.TemporaryDirectory(prefix="pyerofs-") as directory:
        for number, source in enumerate(sources):
            image = f"{directory}/{number}.erofs"
            try:
                if os.path.isdir(source):
                    mkfs = mkfs or find_mkfs()
                    make_image(mkfs, source, image)
                else:
                    _copy(source, image)
                made = make_layer(image, recipe)
            except ImageError as error:
                raise ImageError(f"{source}: {error}") from None
            what = f"layer {number + 1} of {len(sources)}"
            how = target.add_file(made.digest, image, meter(shown, f"{what}: write", made.size))
            os.unlink(image)
            shown.done(f"{what}  {source} -> {short_digest(made.digest)}", made.size, how)
            layers.append(made)
        names = [os.path.basename(os.path.abspath(source)) for source in sources]
        config = new_config(platform, [made.diff_id for made in layers], names)
        add_config(target, config, directory)
    document = make_manifest(config, [made.description for made in layers], {})
    target.add_document(document, root=True)
    return document.digest


def _copy(source: str, image: str) -> None:
    """Copy the file, since the index is put behind the copy: the user's own file stays as it is."""
    try:
        if not os.path.isfile(source):
            raise UsageError(f"{source} is neither a directory nor an EROFS file")
        shutil.copyfile(source, image)
    except OSError as error:
        raise UnavailableError(f"cannot copy {source}: {error.strerror}") from None
