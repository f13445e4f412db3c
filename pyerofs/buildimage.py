"""An image out of directories and ready EROFS files, one layer each, base first."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence

from .convert import add_config
from .copyimage import Meter, meter, short
from .errors import ImageError, SystemFailure, UsageError
from .imagedoc import make_manifest, new_config
from .layermaker import Made, Recipe, make_layer
from .mkfs import find_mkfs, make_image
from .place import Target
from .platforms import Platform


def build_image(sources: Sequence[str], target: Target, platform: Platform, recipe: Recipe, shown: Meter) -> str:
    """Make an image of one platform and return the digest of its manifest. Raises PyerofsError."""
    mkfs = None
    layers: list[Made] = []
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
            shown.done(f"{what}  {source} -> {short(made.digest)}", made.size, how)
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
        raise SystemFailure(f"cannot copy {source}: {error.strerror}") from None
