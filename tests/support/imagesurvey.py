"""Everything that a pyerofs.Image shows, as trees.survey() has it of a mount."""

from __future__ import annotations

import hashlib
import os
import stat

from pyerofs import Image
from tests.support.trees import Entry


def survey_image(image: Image) -> dict[str, Entry]:
    paths = ["/"]
    for top, directories, files in image.walk():
        paths += [os.path.join(top, name) for name in (*directories, *files)]
    names: dict[int, list[str]] = {}
    for path in sorted(paths):
        names.setdefault(image.lstat(path).ino, []).append(path[1:] or ".")
    return {path[1:] or ".": _entry(image, path, names) for path in paths}


def _entry(image: Image, path: str, names: dict[int, list[str]]) -> Entry:
    status = image.lstat(path)
    directory = stat.S_ISDIR(status.mode)
    return Entry(
        kind=stat.filemode(status.mode)[0],
        mode=f"{stat.S_IMODE(status.mode):04o}",
        owner=(status.uid, status.gid),
        mtime_ns=status.mtime_ns,
        size=0 if directory else status.size,
        content=_content(image, path),
        xattrs=dict(sorted(image.xattrs(path, follow_symlinks=False).items())),
        links=tuple(names[status.ino]),
    )


def _content(image: Image, path: str) -> str:
    status = image.lstat(path)
    if stat.S_ISREG(status.mode):
        return hashlib.sha256(image.open(path).read()).hexdigest()
    if stat.S_ISLNK(status.mode):
        return image.readlink(path)
    if stat.S_ISCHR(status.mode) or stat.S_ISBLK(status.mode):
        return f"{os.major(status.rdev)}:{os.minor(status.rdev)}"
    return ""
