"""`pyerofs store`: images for podman, buildah and CRI-O, mounted lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MountError, UsageError
from .notify import notify

if TYPE_CHECKING:
    import argparse

    from ..podman.store import ListedImage
    from .commands import Commands, Parser, Say

_DIRECTORY = "/var/lib/pyerofs/store"
_ITEM = "  {:<12}  {:<10}  {}"


def register(commands: Commands) -> None:
    """Add these commands."""
    group = commands.add_group(
        "store",
        "keep an image store of lazy mounts for podman, buildah and CRI-O",
        "  pyerofs store add quay.io/org/app:1.0      then: podman run quay.io/org/app:1.0\n"
        "  pyerofs store ls\n"
        "  pyerofs store rm quay.io/org/app:1.0\n"
        "  pyerofs store sync                         after a boot: pyerofs-store.service does that\n"
        "  pyerofs store sync /etc/pyerofs/images     what the list names, and nothing else\n\n"
        f'storage.conf: [storage.options] additionalimagestores = ["{_DIRECTORY}"]',
        _store,
    )
    p = group.add("add", "mount images, for podman to start at once", "  pyerofs store add quay.io/org/app:1.0")
    _add_places(p)
    p.add_argument("-t", "--types", default="erofs", metavar="TYPE", help="erofs, erofs.nbd or erofs.fuse")
    p.add_argument("--name", metavar="NAME", help="what podman is to call it (default: its reference)")
    p.add_argument("images", metavar="IMAGE", nargs="+", help="a reference, oci:DIR:NAME, or an archive")
    p = group.add("ls", "list the images", "  pyerofs store ls --json", options=False)
    _add_places(p)
    p.add_argument("--json", action="store_true", help="as JSON")
    p = group.add("rm", "remove images that nothing uses", "  pyerofs store rm quay.io/org/app:1.0", options=False)
    _add_places(p)
    p.add_argument("images", metavar="IMAGE", nargs="+", help="a name, or the beginning of an ID")
    p = group.add(
        "sync", "mount what is not mounted, as after a boot",
        "  pyerofs store sync\n"
        "  pyerofs store sync images.txt              each line: IMAGE [OPTIONS]", options=False,
    )  # fmt: skip
    _add_places(p)
    p.add_argument("list", metavar="LIST", nargs="?", help="a file: add what it names, remove all else that is unused")


def _add_places(p: Parser) -> None:
    p.add_argument("--dir", default=_DIRECTORY, metavar="DIR", help="the store (default: %(default)s)")
    p.add_argument(
        "--graph-root", action="append", default=[], metavar="DIR",
        help="where podman keeps containers, beside what storage.conf says",
    )  # fmt: skip


def _store(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..podman.store import ImageStore

    store = ImageStore(arguments.dir, arguments.graph_root, report)
    if arguments.action == "ls":
        _list(store.images(), arguments.json, write)
    elif arguments.action == "rm":
        _need_root()
        for image in arguments.images:
            store.remove(image)
    elif arguments.action == "add":
        _need_root()
        if arguments.name and len(arguments.images) > 1:
            raise UsageError("--name is for one image")
        for image in arguments.images:
            added = store.add(image, arguments.options, name=arguments.name, fstype=arguments.types)
            write(f"{added.id}  {', '.join(added.names)}")
    else:
        _need_root()
        wanted = None if arguments.list is None else read_wanted(arguments.list)
        if failed := store.sync(wanted):
            raise MountError(f"{failed} of the images could not be mounted")
        notify("READY=1")


def _need_root() -> None:
    import os

    if os.geteuid() != 0:
        raise UsageError("only root can mount, and so change an image store")


def _list(images: list[ListedImage], as_json: bool, write: Say) -> None:
    import json

    from ..printable import every_text

    if as_json:
        write(json.dumps([image.to_json() for image in images], indent=2))
        return
    for image in images:
        shown = every_text(image.to_json())
        write(_ITEM.format(shown["id"][:12], shown["state"], ", ".join(shown["names"]) or "<none>").strip())


def read_wanted(path: str) -> list[tuple[str, list[str]]]:
    """Return the images of a list, each with its options; # begins a comment. Raises UsageError."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.split("#", 1)[0].split() for line in file]
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: {getattr(e, 'strerror', None) or 'it is not UTF-8'}") from None
    for number, line in enumerate(lines, 1):
        if len(line) > 2:
            raise UsageError(f"{path}:{number}: a line is IMAGE, or IMAGE OPTIONS")
    return [(line[0], line[1:]) for line in lines if line]
