"""Options of a mount that others will make again, and that are written down until then."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError
from .option_edits import without_secrets
from .options import MountOptions, parse_mount_options


def kept_options(options: Sequence[str], fstype: str = "erofs") -> list[str]:
    """Return the options of a whole image's mount, to be kept. Raises UsageError for what cannot be."""
    check_whole(parse_mount_options(options, fstype))
    kept, secrets = without_secrets(options)
    if secrets:
        raise UsageError("a password is not kept for the next mount: put it into a file, oci.password_file=")
    return kept


def check_whole(options: MountOptions) -> None:
    """Raise UsageError unless the options are good for all layers of an image, which others put a layer upon."""
    if options.upper or options.oci.layer is not None or options.oci.blob:
        raise UsageError("oci.upperdir, oci.layer and oci.blob cannot be used here: it is the whole image, read-only")
    if options.driver == "local":
        raise UsageError("erofs.local is for files, and not for images: leave it out")
