"""EROFS layers of OCI images, mounted and read lazily.

mount(), unmount() and open_blob() are the whole Python interface; what fails raises a PyerofsError.
"""

# First, and without `from __future__`, which is a module like any other.
from .safepath import leave_current_directory

leave_current_directory(__file__.rpartition("/")[0].rpartition("/")[0])

# isort: split
from typing import TYPE_CHECKING  # noqa: E402

from .errors import PyerofsError  # noqa: E402

if TYPE_CHECKING:
    from .export.file import BlobFile, open_blob
    from .mounting.mount import mount, unmount

__all__ = ["BlobFile", "PyerofsError", "__version__", "mount", "open_blob", "unmount"]
__version__ = "0.1.0"

_HOMES = {"mount": "mounting.mount", "unmount": "mounting.mount", "open_blob": "export.file", "BlobFile": "export.file"}


def __getattr__(name: str) -> object:
    """Import a name on first use.

    A mount helper starts too often to load what it does not need.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
