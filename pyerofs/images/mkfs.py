"""mkfs.erofs, the program: an image of a directory that is the same whenever and wherever it is made.

The same version gives the same image. Versions differ; so may, before 1.9.3, filesystems that list a file's xattrs in
another order. Nothing here needs root, but to read what only root can read.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import NamedTuple

from .. import program
from ..erofs.superblock import HEAD, check_size, inodes, parse, sealed
from ..errors import UnavailableError

BLOCK = 4096  # bytes
_PROGRAM = "mkfs.erofs"
_OLDEST = (1, 5)
_FIXED_TIME = (1, 8)  # has --mkfs-time; before, -T changes the time of every file
_FIXED_BLOCK = (1, 6)  # has -b; before, blocks are of 4 KiB
_LONG_NAMES = (1, 8)  # before, a name of 255 bytes is cut off
_NIL = "00000000-0000-0000-0000-000000000000"
_VERSION = re.compile(r"mkfs\.erofs (?:\(erofs-utils\) )?v?([0-9]+)\.([0-9]+)")
_PIECE = 1 << 20


class Mkfs(NamedTuple):
    path: str
    version: tuple[int, int]


def find_mkfs() -> Mkfs:
    """Find mkfs.erofs. Raises UnavailableError that says how to get it."""
    path = program.find(_PROGRAM)
    if path is None:
        raise UnavailableError(f"{_PROGRAM} is not installed: apt-get install erofs-utils")
    said = _run([path, "-V"])  # 1.5 does not know the option, but says its version
    found = _VERSION.search(_text(said))
    if not found:
        raise UnavailableError(f"cannot tell the version of {path}")
    version = (int(found[1]), int(found[2]))
    if version < _OLDEST:
        raise UnavailableError(f"{path} is version {found[1]}.{found[2]}: 1.5 or newer is needed")
    return Mkfs(path, version)


def make_image(mkfs: Mkfs, root: str, image: str) -> None:
    """Make the file `image` of the directory `root`, which must not change meanwhile.

    Raises UnavailableError where it fails, and where something of the directory would not be in the image.
    """
    expected = _survey(mkfs, root)
    options = ["--quiet", "-U", _NIL, "-x", "1"]  # -x1: an xattr that two files have is stored once
    if mkfs.version >= _FIXED_BLOCK:
        options += [f"-b{BLOCK}"]
    if mkfs.version >= _FIXED_TIME:
        options += ["-T0", "--mkfs-time"]
    else:
        # The time of making is put right afterwards; no inode may be without a time of its own, and so mean that one.
        options += ["--preserve-mtime", "-Eforce-inode-extended"]
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    done = _run([mkfs.path, *options, os.path.abspath(image), os.path.abspath(root)], environment)
    if done.status:
        raise UnavailableError(f"{_PROGRAM} failed: {_last_line(_text(done))}")
    _seal(image, None if mkfs.version >= _FIXED_TIME else 0)
    with open(image, "rb") as file:
        head = file.read(HEAD)
        check_size(parse(head), os.fstat(file.fileno()).st_size)
    if inodes(head) != expected:
        raise UnavailableError(f"{_PROGRAM} put {inodes(head)} files into the image instead of {expected}")


def _seal(image: str, build_time: int | None) -> None:
    """Give the image a UUID by its content: overlayfs tells the layers of an image apart by theirs."""
    with open(image, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.truncate(size + -size % BLOCK)
        block = file.read(BLOCK)
        if build_time is not None:
            block = sealed(block, bytes(16), build_time)
        hasher = hashlib.sha256(block)
        while piece := file.read(_PIECE):
            hasher.update(piece)
        uuid = bytearray(hasher.digest()[:16])
        uuid[6], uuid[8] = uuid[6] & 0x0F | 0x80, uuid[8] & 0x3F | 0x80  # RFC 9562, version 8
        file.seek(0)
        file.write(sealed(block, bytes(uuid), build_time))


def _survey(mkfs: Mkfs, root: str) -> int:
    """How many files the image will have. Raises UnavailableError for what this version is known to get wrong."""
    files = 1
    linked: set[tuple[int, int]] = set()
    pending = [os.fsencode(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                _check_name(mkfs, entry)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1:
                        linked.add((status.st_dev, status.st_ino))
                        continue
                files += 1
    return files + len(linked)


def _check_name(mkfs: Mkfs, entry: os.DirEntry[bytes]) -> None:
    if mkfs.version < _LONG_NAMES and len(entry.name) > 254:
        why = "cannot store names of 255 bytes"
    elif mkfs.version < _FIXED_BLOCK and entry.name.startswith(b"lost+found"):
        why = "leaves out files whose name begins so"
    else:
        return
    version = ".".join(map(str, mkfs.version))
    name = ascii(entry.name.decode("utf-8", "backslashreplace"))
    raise UnavailableError(f"{name}: {_PROGRAM} {version} {why}; install erofs-utils 1.8 or newer")


def _run(command: list[str], environment: dict[str, str] | None = None) -> program.Result:
    try:
        return program.run(command, environ=environment)
    except OSError as error:
        raise UnavailableError(f"cannot run {command[0]}: {error.strerror}") from None


def _text(said: program.Result) -> str:
    return (said.err + said.out).decode(errors="replace")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "<E>" in line] or [text.strip()[-200:]]
    return re.sub(r"\s+", " ", lines[0].removeprefix("<E> erofs: ")) or "it does not say why"
