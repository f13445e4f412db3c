"""What is looked at before an ordinary image's layers are fetched: the room for them, and whom the image is for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, UnavailableError
from ..oci.platforms import Platform, rank
from ..quantity import show_bytes
from ..source import kept_layers

if TYPE_CHECKING:
    from ..oci.manifest import Descriptor


def check_room(directory: str, layers: Sequence[Descriptor]) -> None:
    """Raise UnavailableError where the cache's disk cannot even hold what is to be fetched of these layers."""
    missing = {layer.digest: layer.size for layer in layers if not kept_layers.load(directory, layer.digest)}
    wanted = sum(missing.values())
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < wanted:
        raise UnavailableError(
            f"{directory} has {show_bytes(free)} free, and the layers take {show_bytes(wanted)}: free some room, or "
            "choose another directory with oci.cache=DIR"
        )


def check_platform(config: Mapping[str, Any], wanted: Platform | None, report: Callable[[str], None]) -> None:
    """Report an image that is not for this machine; raise ImageError for one that is not what was asked for.

    For a manifest that no index has chosen.
    """
    system, architecture, variant = (str(config.get(key) or "") for key in ("os", "architecture", "variant"))
    if not system or not architecture:
        return
    have, here = Platform(system, architecture, variant), wanted or Platform.host()
    if rank(here, have) is not None:
        return
    if wanted is not None:
        raise ImageError(f"it is for {have}, and oci.platform={wanted} was asked for")
    report(f"the image is for {have}, and this machine is {here}: its programs do not run here")
