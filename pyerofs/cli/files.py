"""`pyerofs ls`, `cat`, `cp`, `tree`, `find`, `diff`, `export` and `tags`: files of images, without a mount or root."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import stat
import sys
from typing import TYPE_CHECKING

from ..errors import ImageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..images.image_files import ImageFiles, Stat
    from .commands import Commands, Say

_MAGIC = re.compile(r"[*?\[]")
_IMAGE = "an image's reference, oci:DIR[:NAME], an archive or an EROFS file"
_PIECE = 1 << 20  # bytes
_LAST, _MORE, _BESIDE = "\u2514\u2500\u2500 ", "\u251c\u2500\u2500 ", "\u2502   "


def register(commands: Commands) -> None:
    """Add these commands."""
    p = commands.add(
        "ls",
        "list the files of an image",
        "  pyerofs ls quay.io/org/app:1.0\n"
        "  pyerofs ls -l quay.io/org/app:1.0 /usr/bin\n"
        "  pyerofs ls -R app.erofs 'etc/*.d'",
        _ls,
    )
    p.add_argument("-l", "--long", action="store_true", help="with mode, owner, size and time")
    p.add_argument("-R", "--recursive", action="store_true", help="directories within directories too")
    p.add_argument("-d", "--directory", action="store_true", help="directories themselves, not what is in them")
    _add_image(p, "*")

    p = commands.add(
        "cat",
        "write files of an image to standard output",
        "  pyerofs cat quay.io/org/app:1.0 /etc/os-release\n  pyerofs cat app.erofs 'etc/*.conf' | less",
        _cat,
    )
    _add_image(p, "+")

    p = commands.add(
        "cp",
        "copy files of an image",
        "  pyerofs cp quay.io/org/app:1.0 /etc/os-release .\n  pyerofs cp -a quay.io/org/app:1.0 /usr/share/doc out",
        _cp,
    )
    p.add_argument("-a", "--archive", action="store_true", help="directories too; keep modes, times, owners and links")
    _add_image(p, "+")
    p.add_argument("dest", metavar="DEST", help="a directory, or the copy's name")

    p = commands.add("tree", "show an image's directories as a tree", "  pyerofs tree -L 2 quay.io/org/app:1.0", _tree)
    p.add_argument("-L", "--level", type=int, metavar="N", help="so many levels deep")
    _add_image(p, "?")

    p = commands.add(
        "find",
        "find files of an image",
        "  pyerofs find quay.io/org/app:1.0 -name '*.so'\n  pyerofs find quay.io/org/app:1.0 /etc -type l",
        _find,
    )
    p.add_argument("-name", metavar="PATTERN", help="whose name matches")
    p.add_argument("-type", choices=("f", "d", "l", "b", "c", "p", "s"), help="of this kind, as in find(1)")
    _add_image(p, "*")

    p = commands.add(
        "diff",
        "compare the files of two images",
        "  pyerofs diff quay.io/org/app:1.0 quay.io/org/app:1.1\n"
        "  pyerofs diff app-1.erofs app-2.erofs /etc     exit status 1: they differ",
        _diff,
    )
    p.add_argument("image", metavar="IMAGE", help=_IMAGE)
    p.add_argument("other", metavar="IMAGE")
    p.add_argument("path", metavar="PATH", nargs="?", default="/", help="only what is there")

    p = commands.add(
        "export",
        "write the files of an image as a tar archive",
        "  pyerofs export quay.io/org/app:1.0 app.tar\n  pyerofs export quay.io/org/app:1.0 - /etc | tar -tv",
        _export,
    )
    p.add_argument("image", metavar="IMAGE", help=_IMAGE)
    p.add_argument("dest", metavar="FILE", nargs="?", default="-", help="where to, - for standard output (default)")
    p.add_argument("path", metavar="PATH", nargs="?", default="/", help="only what is there")

    p = commands.add("tags", "list the tags of a repository", "  pyerofs tags quay.io/org/app", _tags)
    p.add_argument("image", metavar="REPOSITORY", help="without a tag; or oci:DIR")


def _add_image(p: argparse.ArgumentParser, count: str) -> None:
    p.add_argument("image", metavar="IMAGE", help=_IMAGE)
    p.add_argument("paths", metavar="PATH", nargs=count, help="in the image, with *, ? and [] (to be quoted)")


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace, report: Say, image: str = "") -> Iterator[ImageFiles]:
    """Open the image; what a file of it lacks is an error of one line."""
    from ..images.image_files import ImageFiles
    from ..images.progress import Console, Lines
    from .terminal import show

    shown = Lines(Console(report, show if not arguments.quiet and sys.stderr.isatty() else None))
    name = image or arguments.image
    trace = report if arguments.verbose > 1 else None
    with ImageFiles(name, arguments.options, log=report, trace=trace, shown=shown) as found:
        try:
            yield found
        except OSError as error:
            if error.filename is None or isinstance(error.filename, int):
                raise
            raise UsageError(f"{name}: {error.filename}: {error.strerror}") from None


def _expand(image: ImageFiles, paths: Iterable[str]) -> list[str]:
    """Return what the patterns mean; one that matches nothing is a path, and fails as such."""
    found: list[str] = []
    for path in paths:
        matches = image.glob(path) if _MAGIC.search(path) and not image.exists(path) else []
        found += matches or [path]
    return found


# Showing


def _ls(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    with _opened(arguments, report) as image:
        paths = _expand(image, arguments.paths or ["/"])
        directories: list[str] = []
        files: list[str] = []
        for path in paths:
            kind = image.stat(path) if not arguments.long and image.exists(path) else image.lstat(path)
            (directories if stat.S_ISDIR(kind.mode) and not arguments.directory else files).append(path)
        for path in files:
            write(_line(image, path, path, arguments.long))
        titled = len(paths) > 1 or arguments.recursive
        for number, path in enumerate(directories):
            _ls_directory(image, path, arguments, write, titled, first=not number and not files)


def _ls_directory(
    image: ImageFiles, path: str, arguments: argparse.Namespace, write: Say, titled: bool, *, first: bool
) -> None:
    if titled:
        write(f"{'' if first else chr(10)}{path}:")
    inner = []
    for name in image.listdir(path):
        whole = os.path.join(path, name)
        if arguments.long or arguments.recursive:
            found = image.lstat(whole)
            if stat.S_ISDIR(found.mode):
                inner.append(whole)
        write(_line(image, whole, name, arguments.long))
    if arguments.recursive:
        for whole in inner:
            _ls_directory(image, whole, arguments, write, titled, first=False)


def _line(image: ImageFiles, path: str, name: str, long: bool) -> str:
    if not long:
        return name
    found = image.lstat(path)
    return f"{_long(found)} {name}{f' -> {image.readlink(path)}' if stat.S_ISLNK(found.mode) else ''}"


def _long(found: Stat) -> str:
    import time

    size = f"{os.major(found.rdev)}, {os.minor(found.rdev)}" if _is_device(found.mode) else str(found.size)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.mtime_ns // 10**9))
    return f"{stat.filemode(found.mode)} {found.nlink:>3} {found.uid:>5} {found.gid:>5} {size:>12} {when}"


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _tree(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    with _opened(arguments, report) as image:
        top = arguments.paths or "/"
        write(top)
        counts = [0, 0]
        _branch(image, top, "", arguments.level, write, counts)
        write(f"\n{counts[0]} directories, {counts[1]} files")


def _branch(image: ImageFiles, path: str, before: str, level: int | None, write: Say, counts: list[int]) -> None:
    if level == 0:
        return
    found = list(image.scandir(path))
    for number, (name, status) in enumerate(found):
        last = number == len(found) - 1
        whole = os.path.join(path, name)
        target = f" -> {image.readlink(whole)}" if stat.S_ISLNK(status.mode) else ""
        write(f"{before}{_LAST if last else _MORE}{name}{target}")
        counts[not stat.S_ISDIR(status.mode)] += 1
        if stat.S_ISDIR(status.mode):
            deeper = None if level is None else level - 1
            _branch(image, whole, before + ("    " if last else _BESIDE), deeper, write, counts)


def _find(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    import fnmatch

    letters = dict(zip("fdlbcps", "-dlbcps", strict=True))

    def matches(name: str, found: Stat) -> bool:
        if arguments.name is not None and not fnmatch.fnmatchcase(name, arguments.name):
            return False
        return arguments.type is None or stat.filemode(found.mode)[0] == letters[arguments.type]

    def look(path: str, found: Stat) -> None:
        if matches(os.path.basename(path.rstrip("/")) or "/", found):
            write(path)
        if stat.S_ISDIR(found.mode):
            for name, inner in image.scandir(path):
                look(os.path.join(path, name), inner)

    with _opened(arguments, report) as image:
        for path in _expand(image, arguments.paths or ["/"]):
            look(path, image.lstat(path))


# Giving


def _cat(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    with _opened(arguments, report) as image:
        for path in _expand(image, arguments.paths):
            with image.open_raw(path) as file:
                for at in range(0, file.size, _PIECE):
                    _write_all(1, file.pread(_PIECE, at))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _cp(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..images.copy_out import CopyOut

    with _opened(arguments, report) as image:
        paths = _expand(image, arguments.paths)
        into = os.path.isdir(arguments.dest)
        if len(paths) > 1 and not into:
            raise UsageError(f"{arguments.dest} is not a directory, and {len(paths)} files are to go there")
        copy = CopyOut(image, archive=arguments.archive)
        for path in paths:
            name = os.path.basename(path.rstrip("/"))
            dest = os.path.join(arguments.dest, name) if into and name else arguments.dest
            copy.copy(path, dest)
        for line in copy.finish():
            report(line)


def _export(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..images.tar_out import write_tar

    with _opened(arguments, report) as image:
        if arguments.dest == "-":
            if sys.stdout.isatty():
                raise UsageError("an archive is not for a terminal: name a FILE, or send it through a pipe")
            write_tar(image, arguments.path, sys.stdout.buffer)
        else:
            with open(arguments.dest, "wb") as out:
                write_tar(image, arguments.path, out)


# Comparing


def _diff(arguments: argparse.Namespace, write: Say, report: Say) -> int:
    """Return 1 where they differ, as diff(1)."""
    from ..images.compare import compare

    with _opened(arguments, report) as one, _opened(arguments, report, arguments.other) as other:
        found = False
        for line in compare(one, other, arguments.path):
            found = True
            write(line)
    return int(found)


def _tags(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..images.tags import tags

    found = tags(arguments.image, arguments.options, trace=report if arguments.verbose else None)
    if not found:
        raise ImageError(f"{arguments.image} has no tags")
    for tag in found:
        write(tag)
