"""Making a bundle of an image, and removing it.

DIR/config.json             for the runtime
DIR/rootfs                  the image, mounted
DIR/upper, DIR/work         what the container changes; none where its root is read-only
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from typing import TYPE_CHECKING

from ..config.kept import check_whole
from ..config.options import parse_mount_options
from ..context import Context, ignore
from ..errors import MountError, PyerofsError, UnavailableError, UsageError
from ..files import atomic_write
from ..images.documents import options_of_mount, read_documents
from ..kernel import mountpoint
from ..mounting.mount import mount, unmount
from ..oci.location import Location
from .spec import IMAGE, command_of, is_ours, make_spec
from .users import look_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CONFIG_MAX = 16 << 20  # bytes


def make_bundle(
    source: str,
    directory: str,
    command: Sequence[str] = (),
    options: Sequence[str] = (),
    *,
    fstype: str = "erofs",
    read_only: bool = False,
    terminal: bool = False,
    report: Callable[[str], None] = ignore,
) -> None:
    """Make a bundle in `directory`, which is made, or empty.

    `command`: in place of the image's own, behind its entrypoint; `options`: of the mount. Raises PyerofsError, and
    then nothing is left behind.
    """
    location = Location.parse(source)
    check_whole(parse_mount_options(options, fstype))
    parsed = options_of_mount(location, options, fstype)
    documents = read_documents(location, parsed.oci, Context(report))
    settings = documents.settings()
    args = command_of(settings, command)
    directory = os.path.abspath(directory)
    made = _make_directory(directory)
    root = os.path.join(directory, "rootfs")
    try:
        changes = []
        for name in ("upper", "work"):
            os.mkdir(os.path.join(directory, name), mode=0o755)
            changes.append(f'oci.{name}dir="{os.path.join(directory, name)}"')
        os.mkdir(root, mode=0o755)
        mount(str(documents.location), root, [*options, *changes], fstype=fstype, report=report)
        spec = make_spec(
            settings,
            args,
            look_up(root, _user(settings.get("User"))),
            hostname=re.sub(r"[^A-Za-z0-9-]", "-", os.path.basename(directory))[:63].strip("-") or "container",
            annotations={IMAGE: f"{documents.name} {documents.manifest.digest}"},
            read_only=read_only,
            terminal=terminal,
        )
        atomic_write(os.path.join(directory, "config.json"), json.dumps(spec, indent=2).encode() + b"\n", mode=0o644)
    except BaseException as e:
        with contextlib.suppress(PyerofsError):
            if mountpoint.find(os.path.realpath(root)):
                unmount(root, lazy=True)
        _remove_files(directory, made)
        if isinstance(e, OSError):
            raise UnavailableError(f"bundle {directory}: {e.strerror}") from None
        raise


def _user(value: object) -> str:
    return value if isinstance(value, str) else ""


def _make_directory(directory: str) -> bool:
    """Whether it was made. Raises UsageError for one that is not empty, UnavailableError."""
    try:
        os.mkdir(directory, mode=0o711)
        return True
    except FileExistsError:
        pass
    except OSError as e:
        raise UnavailableError(f"bundle {directory}: {e.strerror}") from None
    try:
        if os.listdir(directory):
            raise UsageError(f"{directory} is not empty: a bundle needs a directory of its own")
    except OSError as e:
        raise UsageError(f"{directory}: {e.strerror}") from None
    return False


def _remove_files(directory: str, whole: bool) -> None:
    """Remove all of a bundle whose root is not mounted any more. Raises OSError for what is left of it."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, "config.json"))
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(os.path.join(directory, "rootfs"))  # never what lies in it
    for name in ("upper", "work"):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(os.path.join(directory, name))
    if whole:
        with contextlib.suppress(OSError):  # somebody has put something there
            os.rmdir(directory)


def remove_bundle(directory: str) -> None:
    """Unmount the image of a bundle, and remove what belongs to the bundle, also what its container has changed.

    Raises UsageError for what is none of ours, MountError while its container runs.
    """
    directory = os.path.realpath(directory)
    try:
        with open(os.path.join(directory, "config.json"), "rb") as file:
            known = is_ours(file.read(_CONFIG_MAX))
    except OSError as e:
        raise UsageError(f"{directory} is no bundle: config.json: {e.strerror}") from None
    if not known:
        raise UsageError(f"{directory} is no bundle that pyerofs has made")
    root = os.path.join(directory, "rootfs")
    if mountpoint.find(root):
        unmount(root)
    try:
        _remove_files(directory, whole=True)
    except OSError as e:
        raise MountError(f"bundle {directory}: {e.strerror}") from None
