"""Who uses layers of an image store: containers that run, and what podman has put on them, running or not."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Iterable, Sequence

from ..kernel.mountpoint import parse_mountinfo
from .files import StoredImage, link_of, read_list

_CONFIGS = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")
_DEFAULT = "/var/lib/containers/storage"
# Containers of `run --rm` are in a list of their own from containers/storage 1.45 on.
_LISTS = ("overlay-layers/layers.json", "overlay-layers/volatile-layers.json")


def graph_roots(given: Sequence[str] = ()) -> list[str]:
    """Return where root's podman and CRI-O keep what they make: those given, and the machine's own."""
    named = [os.environ.get("CONTAINERS_STORAGE_CONF", ""), *_CONFIGS]
    for path in filter(None, named):
        try:
            with open(path, "rb") as file:
                root = tomllib.load(file).get("storage", {}).get("graphroot")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(root, str) and root:
            return [*given, root]
    return [*given, _DEFAULT]


def users_of(image: StoredImage, roots: Iterable[str]) -> list[str]:
    """Return, for messages, what would lose its files with the image. Raises UnavailableError."""
    found = [
        f"{root}: layer {str(entry.get('id'))[:12]} ({', '.join(_names(entry)) or 'of a container'})"
        for root in roots
        for name in _LISTS
        for entry in read_list(os.path.join(root, name))
        if entry.get("parent") in image.layers
    ]
    return found + [f"process {pid} has a container's files mounted" for pid in _mounted(image)]


def _names(entry: dict[str, object]) -> list[str]:
    names = entry.get("names")
    return [str(name) for name in names] if isinstance(names, list) else []


def _mounted(image: StoredImage) -> list[int]:
    """Return processes in whose mount namespaces an overlay has a layer of it, one of each namespace."""
    links = [f"l/{link_of(layer)}" for layer in image.layers]
    seen: set[str] = set()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            with open(f"/proc/{name}/mountinfo", "rb") as file:
                mounts = parse_mountinfo(file.read())
        except OSError:
            continue  # it has ended
        if any(mount.fstype == "overlay" and _uses(mount.super_options, links) for mount in mounts):
            found.append(int(name))
    return found


def _uses(options: str, links: Collection[str]) -> bool:
    return any(link in options for link in links)
