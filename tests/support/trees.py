"""Trees of files with everything that a filesystem can hold, EROFS images of them, and their comparison."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support.needs import need

MIB = 1 << 20
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # VFS_CAP_REVISION_2, effective; CAP_NET_BIND_SERVICE
ACL_ENTRIES = (
    (1, 7, -1),
    (2, 5, 1234),
    (4, 5, -1),
    (16, 5, -1),
    (32, 0, -1),
)  # u::rwx, u:1234:r-x, g::r-x, m::r-x, o::-
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in ACL_ENTRIES)
LINKS = {
    "link": "hello",
    "up": "../../etc",
    "absolute": "/etc/passwd",
    "dangling": "no/where",
    "loop": "loop",
    "long link": "x/" * 2000 + "y",
}


class Entry(NamedTuple):
    """What must survive the way through an image. `links`: all names of the same file, by bytes; `content`: a
    SHA-256 of a file, a link's target, a device's numbers."""

    kind: str
    mode: str
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    content: str
    xattrs: dict[str, bytes]
    links: tuple[str, ...]


class Tree(NamedTuple):
    root: Path
    entries: dict[str, Entry]


def make_tree(root: Path, *, large: int, many: int) -> Tree:
    """A directory at `root`: one file of `large` bytes, one directory of `many` files, and one of each other kind.

    Needs root, and a filesystem with trusted and user xattrs. Always the same.
    """
    chance = random.Random(3)
    root.mkdir()
    files = {
        "empty": b"",
        "hello": b"hello, world\n",
        "page": chance.randbytes(4096),
        "page and a byte": chance.randbytes(4097),
        "text": b"".join(b"line %d\n" % number for number in range(20_000)),
        "sub/dir/here": b"deep",
        "name with\nnewline and \\ backslash": b"odd",
        "b" * 254: b"a long name",  # mkfs.erofs 1.5 fails at 255
        "Ünïcödé ☃ 名前": "Grüße\n".encode(),
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / os.fsdecode(b"not \xff utf-8")).write_bytes(b"bytes")
    with (root / "large").open("wb") as file:
        for number in range(large // MIB):
            file.write(chance.randbytes(MIB // 2) + b"%016d" % number * (MIB // 32))
        file.write(chance.randbytes(large % MIB))
    with (root / "sparse").open("wb") as file:
        for at in (MIB, 2 * MIB + 123):
            file.seek(at)
            file.write(b"island")
        file.truncate(3 * MIB)
    (root / "many").mkdir()
    for number in range(many):
        (root / "many" / f"file {number}").write_bytes(b"%d" % number)
    (root / "/".join(["down"] * 40)).mkdir(parents=True)
    (root / "/".join(["down"] * 40) / "bottom").write_bytes(b"at last")
    (root / "empty directory").mkdir()
    _make_specials(root)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(0, 1_600_000_000_000_000_000 + number * 1_000_000_007), follow_symlinks=False)
    os.utime(root, ns=(0, 1_500_000_000_000_000_000))
    return Tree(root, survey(root))


def _make_specials(root: Path) -> None:
    os.link(root / "text", root / "hard link")
    os.link(root / "text", root / "sub" / "hard link")
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    for mode in (0o0, 0o400, 0o751, 0o4755, 0o2755, 0o6711, 0o1777):
        path = root / f"mode {mode:o}"
        path.write_bytes(b"%o" % mode)
        path.chmod(mode)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    for uid, gid in ((1000, 1001), (65535, 65536), (4_000_000, 4_000_001)):
        path = root / f"owner {uid}"
        path.write_bytes(b"")
        os.chown(path, uid, gid)
    os.mkfifo(root / "fifo", 0o620)
    os.mknod(root / "socket", 0o755 | stat.S_IFSOCK)
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(root / "block", 0o660 | stat.S_IFBLK, os.makedev(259, 70_000))
    xattrs = {
        "user.short": b"1",
        "user.empty": b"",
        "user.long": b"v" * 2000,
        "trusted.overlay.opaque": b"y",
        "security.capability": CAPABILITY,
        "system.posix_acl_access": ACL,
    }
    (root / "xattrs").write_bytes(b"has some")
    (root / "xattrs here").mkdir()
    for name, value in xattrs.items():
        os.setxattr(root / "xattrs", name, value)
        if name != "security.capability":
            os.setxattr(root / "xattrs here", name, value)
    os.setxattr(root / "link", "trusted.of.a.link", b"yes", follow_symlinks=False)


def survey(root: Path) -> dict[str, Entry]:
    """Everything below `root`, and it itself as "."; what two equal trees have in common."""
    found: dict[str, Entry] = {}
    names: dict[tuple[int, int], list[str]] = {}
    paths = [root, *sorted(root.rglob("*"))]
    for path in paths:
        status = path.lstat()
        names.setdefault((status.st_dev, status.st_ino), []).append(str(path.relative_to(root)))
    for path in paths:
        status = path.lstat()
        directory = stat.S_ISDIR(status.st_mode)
        found[str(path.relative_to(root))] = Entry(
            kind=stat.filemode(status.st_mode)[0],
            mode=f"{stat.S_IMODE(status.st_mode):04o}",
            owner=(status.st_uid, status.st_gid),
            mtime_ns=status.st_mtime_ns,
            size=0 if directory else status.st_size,
            content=_content(path, status),
            xattrs={name: os.getxattr(path, name, follow_symlinks=False) for name in _xattr_names(path)},
            links=tuple(names[status.st_dev, status.st_ino]),
        )
        assert directory or status.st_nlink == len(names[status.st_dev, status.st_ino]), path
    return found


def _xattr_names(path: Path) -> list[str]:
    return sorted(name for name in os.listxattr(path, follow_symlinks=False) if name != "security.selinux")


def _content(path: Path, status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if stat.S_ISLNK(status.st_mode):
        return str(path.readlink())
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return ""


def assert_same(expected: dict[str, Entry], root: Path) -> None:
    """`root` holds exactly what was surveyed; says the first few differences otherwise."""
    found = survey(root)
    assert sorted(found) == sorted(expected)
    differing = [f"{name!r}: {expected[name]} became {found[name]}" for name in found if found[name] != expected[name]]
    assert not differing, "\n".join(differing[:5])


def make_image(tree: Path, image: Path, *options: str) -> Path:
    """`image`, an EROFS image of the tree by mkfs.erofs."""
    need("mkfs.erofs", "erofs-utils")
    subprocess.run(["mkfs.erofs", *options, image, tree], check=True, capture_output=True)
    return image
