"""Which image of an OCI layout is meant: its index.json lists them, each tool in its own way.

Docker's buildx gives the tag as org.opencontainers.image.ref.name and the whole reference as io.containerd.image.name;
skopeo and podman give the whole reference as the first of them. Pure values.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ImageError, UsageError
from .location import Location, number_of
from .manifest import Descriptor, listed
from .raw_manifest import REF_NAME
from .reference import Reference

_CONTAINERD = "io.containerd.image.name"


def choose(entries: Sequence[Descriptor], location: Location) -> Descriptor:
    """Return the image that is meant, the only one where none is named. Raises ImageError that says what there is."""
    found = _meant(entries, location)
    if len({entry.digest for entry in found}) == 1:
        return found[0]
    where = f"{location.kind}:{location.path}"
    if not entries:
        raise ImageError(f"{where} has no image")
    if location.name is None:
        why = "does not say which of several images is meant"
    elif found:
        why = f"has several images with the name {location.name!r}"
    else:
        why = f"has no image with the name {location.name!r}"
    names = dict.fromkeys(f"{where}:{_shown(entry, entries)}" for entry in entries)
    raise ImageError(f"{where} {why}; there are {listed(list(names))}")


def _meant(entries: Sequence[Descriptor], location: Location) -> list[Descriptor]:
    name, digest, number = location.name, location.digest, number_of(location.name)
    if name is None:
        return list(entries)
    if digest is not None:
        return [entry for entry in entries if entry.digest == digest]
    if number is not None:
        return list(entries[number : number + 1])
    exact = [entry for entry in entries if name in _names(entry)]
    return exact or [entry for entry in entries if any(same_reference(name, other) for other in _names(entry))]


def _names(entry: Descriptor) -> list[str]:
    return [entry.annotations[key] for key in (REF_NAME, _CONTAINERD) if entry.annotations.get(key)]


def _shown(entry: Descriptor, entries: Sequence[Descriptor]) -> str:
    """Return a name that means this image alone."""
    others = {name for other in entries if other.digest != entry.digest for name in _names(other)}
    return next((name for name in _names(entry) if name not in others), f"@{entry.digest}")


def same_reference(one: str, other: str) -> bool:
    """Whether two references mean the same, one of them perhaps in short."""
    try:
        return Reference.parse(one) == Reference.parse(other)
    except UsageError:
        return False
