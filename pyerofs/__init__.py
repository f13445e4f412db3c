"""EROFS layers of OCI images, mounted and read lazily.

    mount(), unmount(), reattach()    an image at a directory, and the end of that; a new daemon for a mount
    list(), inspect()                 what is mounted; what an image holds
    Image                             the files of an image, without any mount
    open_blob(), BlobFile             a layer as a file, without any mount

These are the whole Python interface. What fails raises a PyerofsError; its classes are here too. What the functions
have to say goes to logging.getLogger("pyerofs"), unless they are given another place for it.
"""

# First, and without `from __future__`, which is a module like any other.
from .safepath import leave_current_directory

leave_current_directory(__file__.rpartition("/")[0].rpartition("/")[0])

# isort: split
from typing import TYPE_CHECKING  # noqa: E402

from .errors import (  # noqa: E402
    AuthError,
    CorruptError,
    ImageError,
    InternalError,
    MountError,
    NotFoundError,
    PyerofsError,
    RegistryError,
    SpoiledError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .export.file import BlobFile, open_blob
    from .images.image_files import ImageFiles as Image
    from .images.inspect import inspect
    from .mounting.list import mounts as list
    from .mounting.mount import mount, unmount
    from .mounting.reattach import reattach

__all__ = [
    "AuthError",
    "BlobFile",
    "CorruptError",
    "Image",
    "ImageError",
    "InternalError",
    "MountError",
    "NotFoundError",
    "PyerofsError",
    "RegistryError",
    "SpoiledError",
    "UnavailableError",
    "UsageError",
    "__version__",
    "inspect",
    "list",
    "mount",
    "open_blob",
    "reattach",
    "unmount",
]
__version__ = "0.1.0"

# Where each of the others is, and its name there.
_HOMES = {
    "BlobFile": ("export.file", "BlobFile"),
    "Image": ("images.image_files", "ImageFiles"),
    "inspect": ("images.inspect", "inspect"),
    "list": ("mounting.list", "mounts"),
    "mount": ("mounting.mount", "mount"),
    "open_blob": ("export.file", "open_blob"),
    "reattach": ("mounting.reattach", "reattach"),
    "unmount": ("mounting.mount", "unmount"),
}


def __getattr__(name: str) -> object:
    """Import a name on first use.

    A mount helper starts too often to load what it does not need.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> "Iterable[str]":
    return sorted(__all__)
