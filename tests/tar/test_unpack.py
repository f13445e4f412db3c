"""Layers into directories: each kind of entry, what lower layers have to do with it, and archives that mean harm."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyerofs.errors import ImageError, PyerofsError, UnavailableError
from pyerofs.tar import unpack as unpacking
from pyerofs.tar.reader import Tar
from pyerofs.tar.unpack import unpack
from tests.support.needs import need_root
from tests.support.tarballs import archive, info
from tests.support.trees import CAPABILITY, survey

OPAQUE = {"trusted.overlay.opaque": b"y"}
Member = tuple[tarfile.TarInfo, bytes]


class Stack:
    """Layers, unpacked one on another."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.layers: list[Path] = []  # base first

    def add(self, *members: Member) -> Path:
        root = self._directory / str(len(self.layers))
        root.mkdir()
        lowers = [os.fsencode(path) for path in reversed(self.layers)]
        unpack(Tar(io.BytesIO(archive(*members)).read), os.fsencode(root), lowers)
        self.layers.append(root)
        return root


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    need_root()
    (tmp_path / "layers").mkdir()
    yield Stack(tmp_path / "layers")
    assert [path.name for path in tmp_path.iterdir()] == ["layers"]  # nothing went out of it


def file(name: str, content: bytes = b"", **fields: object) -> Member:
    return info(name, **fields), content


def directory(name: str, **fields: object) -> Member:
    return info(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields}), b""


def symlink(name: str, target: str) -> Member:
    return info(name, type=tarfile.SYMTYPE, linkname=target), b""


def link(name: str, target: str) -> Member:
    return info(name, type=tarfile.LNKTYPE, linkname=target), b""


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path)


def test_every_kind(stack: Stack) -> None:
    xattrs = {
        "SCHILY.xattr.user.a": "1",
        "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape"),
        "mtime": "1500000000.123456789",
    }
    root = stack.add(
        directory("./", mode=0o751, uid=3, mtime=1_400_000_000),
        directory("d", mode=0o1777, uid=5, gid=6, mtime=1_500_000_001),
        file("d/f", b"content", mode=0o6755, uid=1000, gid=4_000_000, pax_headers=xattrs),
        link("d/hard", "d/f"),
        symlink("d/soft", "/etc/passwd"),
        (info("d/char", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666), b""),
        (info("d/block", type=tarfile.BLKTYPE, devmajor=259, devminor=70_000, mode=0o660), b""),
        (info("d/fifo", type=tarfile.FIFOTYPE, mode=0o622), b""),
        file("deep/er/file"),
        file("ü" * 127, b"long"),
    )
    found = survey(root)
    assert (found["."].mode, found["."].owner, found["."].mtime_ns) == ("0751", (3, 0), 1_400_000_000 * 10**9)
    assert found["d"][:4] == ("d", "1777", (5, 6), 1_500_000_001 * 10**9)
    entry = found["d/f"]
    assert entry[:5] == ("-", "6755", (1000, 4_000_000), 1_500_000_000_123_456_789, 7)
    assert entry.xattrs == {"user.a": b"1", "security.capability": CAPABILITY}
    assert entry.links == found["d/hard"].links == ("d/f", "d/hard")
    assert found["d/soft"].content == "/etc/passwd"
    assert (found["d/char"].content, found["d/block"].content) == ("1:3", "259:70000")
    assert found["d/fifo"][:2] == ("p", "0622")
    assert found["deep"][:4] == ("d", "0755", (0, 0), 0)


def test_sparse_files_stay_sparse(stack: Stack) -> None:
    headers = {"GNU.sparse.map": "104857600,5", "GNU.sparse.size": "209715200"}
    root = stack.add(file("f", b"hello", pax_headers=headers))
    status = (root / "f").stat()
    assert (status.st_size, status.st_blocks < 1000) == (200 << 20, True)
    with (root / "f").open("rb") as opened:
        opened.seek(100 << 20)
        assert opened.read(6) == b"hello\0"


# Deletions


def test_whiteouts(stack: Stack) -> None:
    stack.add(file("d/a"), file("d/b"), file("e/x"), symlink("s", "d"))
    root = stack.add(file("d/.wh.a"), file(".wh.e"), file("d/.wh.never"), file("nowhere/.wh.x"), file("s/.wh.b"))
    assert names(root) == ["d", "d/a", "d/b", "e"]
    assert all(is_whiteout(root / name) for name in ("d/a", "d/b", "e"))
    top = stack.add(file("d/.wh.a"))  # it is gone already
    assert names(top) == []


def test_the_base_has_nothing_to_delete(stack: Stack) -> None:
    root = stack.add(file(".wh.a"), directory("d"), file("d/.wh..wh..opq"), file("d/.wh.x"))
    assert names(root) == ["d"]
    assert not is_opaque(root / "d")


@pytest.mark.parametrize("marker_first", [False, True])
def test_opaque_directories(stack: Stack, marker_first: bool) -> None:
    stack.add(file("d/a"), file("d/sub/b"))
    marker, rest = [file("d/.wh..wh..opq")], [file("d/.wh.a"), file("d/new"), file("d/sub/.wh.b"), file("d/sub/c")]
    root = stack.add(directory("d"), *(marker + rest if marker_first else rest + marker))
    assert is_opaque(root / "d")
    assert names(root) == ["d", "d/new", "d/sub", "d/sub/c"]  # a whiteout below would be seen as a device
    assert survey(root)["d/sub"].mtime_ns == 0


@pytest.mark.parametrize("deletion_first", [False, True])
def test_deleted_and_made_anew(stack: Stack, deletion_first: bool) -> None:
    """A deletion is for what lies below, wherever in the archive it stands."""
    stack.add(file("d/old"), file("f", b"old"))
    deletions, entries = [file(".wh.d"), file(".wh.f")], [directory("d"), file("d/new"), file("f", b"new")]
    root = stack.add(*(deletions + entries if deletion_first else entries + deletions))
    assert names(root) == ["d", "d/new", "f"]
    assert is_opaque(root / "d")
    assert (root / "f").read_bytes() == b"new"


def test_deleted_and_entered_without_an_entry(stack: Stack) -> None:
    stack.add(directory("d", mode=0o700), file("d/old"))
    root = stack.add(file(".wh.d"), file("d/new"))
    assert names(root) == ["d", "d/new"]
    assert is_opaque(root / "d")
    assert survey(root)["d"].mode == "0755"


def test_all_deleted_at_the_root(stack: Stack) -> None:
    """overlayfs does not look at a layer's root."""
    stack.add(file("a"), file("d/x"), file("e/y"))
    root = stack.add(file(".wh..wh..opq"), file("d/z"), file("new"))
    assert names(root) == ["a", "d", "d/z", "e", "new"]
    assert is_whiteout(root / "a")
    assert is_whiteout(root / "e")
    assert is_opaque(root / "d")
    assert not is_opaque(root)


def test_what_aufs_left(stack: Stack) -> None:
    assert names(stack.add(file(".wh..wh.aufs"), file(".wh..wh.plnk/1"), directory(".wh..wh.orph"))) == []


# Lower layers


def test_directories_passed_through_keep_their_attributes(stack: Stack) -> None:
    stack.add(
        directory(".", mode=0o700, mtime=5),
        directory("d", mode=0o1770, uid=7, mtime=1_500_000_000, pax_headers={"SCHILY.xattr.user.k": "v"}),
        file("d/e/f"),
    )
    root = stack.add(file("d/new"))
    found = survey(root)
    assert found["d"][:4] == ("d", "1770", (7, 0), 1_500_000_000 * 10**9)
    assert found["d"].xattrs == {"user.k": b"v"}
    assert found["."].mode == "0700"
    assert survey(stack.add(file("d/e/g")))["d"] == found["d"]


def test_hard_links_to_lower_layers(stack: Stack) -> None:
    stack.add(directory("d", mode=0o711), file("d/f", b"content", mode=0o4755, uid=9, mtime=77), symlink("s", "x"))
    root = stack.add(link("g", "d/f"), link("t", "s"))
    found = survey(root)
    assert found["g"].links == ("d/f", "g")
    assert found["g"][:5] == ("-", "4755", (9, 0), 77 * 10**9, 7)
    assert (root / "g").read_bytes() == b"content"
    assert found["d"].mode == "0711"
    assert found["t"].content == "x"


def test_a_file_that_was_linked_and_deleted(stack: Stack) -> None:
    """How a file that got another name may come."""
    stack.add(file("old", b"content"))
    root = stack.add(link("new", "old"), file(".wh.old"))
    assert is_whiteout(root / "old")
    assert (root / "new").read_bytes() == b"content"
    assert survey(root)["new"].links == ("new",)


@pytest.mark.parametrize("target", ["d/f", "g", "never"])
def test_hard_links_respect_deletions(stack: Stack, target: str) -> None:
    stack.add(file("d/f"), file("g"))
    stack.add(file("d/.wh..wh..opq"), file("d/x"), file(".wh.g"))
    with pytest.raises(ImageError, match=f"a hard link to '{target}', which is not there"):
        stack.add(link("h", target))


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "x/../usr/lib", "two"])
def test_links_on_the_way_are_followed_within_the_image(stack: Stack, lower: bool, target: str) -> None:
    base = [directory("usr/lib"), directory("x"), symlink("two", "usr/lib"), symlink("lib", target)]
    if lower:
        stack.add(*base)
        root = stack.add(file("lib/f", b"1"), link("g", "lib/f"))
        assert not (root / "lib").exists()
    else:
        root = stack.add(*base, file("lib/f", b"1"), link("g", "lib/f"))
    assert (root / "usr" / "lib" / "f").read_bytes() == b"1"
    assert (root / "g").read_bytes() == b"1"


# Entries that come again


def test_later_entries_replace_earlier_ones(stack: Stack) -> None:
    root = stack.add(
        file("a", b"1"), link("b", "a"), file("a", b"2"),
        directory("d", mtime=5), file("d/x"), file("d", b"file"),
        symlink("s", "a"), directory("s"), file("s/in"),
        directory("again", mode=0o700), file("again/x"), directory("again", mode=0o711),
    )  # fmt: skip
    assert (root / "a").read_bytes() == b"2"
    assert (root / "b").read_bytes() == b"1"
    assert (root / "d").read_bytes() == b"file"
    assert (root / "s" / "in").exists()
    assert (stat.S_IMODE((root / "again").stat().st_mode), (root / "again" / "x").exists()) == (0o711, True)


# Harm


@pytest.mark.parametrize(("members", "error"), [
    ([file("../out")], "it leads out of the image"),
    ([file("a/../../out")], "it leads out of the image"),
    ([file("/../out")], "it leads out of the image"),
    ([link("a", "b/../../etc/passwd")], "it leads out of the image"),
    ([file("d/.wh...")], "it deletes what has no name"),
    ([file("d/.wh..")], "it deletes what has no name"),
    ([file("d/.wh.")], "it deletes what has no name"),
    ([file("../.wh.out")], "it leads out of the image"),
    ([file(".wh.a/b")], "it lies below a whiteout"),
    ([file(".wh..wh..opq/b")], "it lies below a whiteout"),
    ([symlink("s", "s"), file("s/out")], "too many symbolic links"),
    ([link("a", "../../etc/passwd")], "it leads out of the image"),
    ([symlink("s", "../../etc"), link("a", "s/passwd")], "a hard link to 's/passwd', which is not there"),
    ([link("a", "/etc/passwd")], "a hard link to '/etc/passwd', which is not there"),
    ([directory("d"), link("a", "d")], "a hard link to the directory 'd'"),
    ([link("a", "")], "a hard link to '', which is not there"),
    ([file("a"), file("a/b")], "there is a file where it needs a directory"),
    ([file("./")], "the image's root is not a directory"),
    ([symlink("a", "")], "a symbolic link without a target"),
    ([(info("a", type=tarfile.CHRTYPE), b"")], "a character device 0:0"),
    ([file("n" * 256)], "File name too long"),
    ([file("n/" * 400 + "f")], "it lies 401 directories deep"),
    ([directory("n/" * 300), symlink("s", "n/" * 300), file("s/" + "n/" * 300 + "f")], "directories deep"),
    ([file(f"{'n' * 250}/" * 20)], "File name too long"),
    ([file("huge", b"x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 50)})], "has no room"),
])  # fmt: skip
def test_harm(stack: Stack, members: list[Member], error: str) -> None:
    with pytest.raises(PyerofsError, match=error) as caught:
        stack.add(*members)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["..", "../..", "../../../x/../d/..", "/../..", "d/../../../"])
def test_a_link_that_leads_out_ends_at_the_root(stack: Stack, target: str) -> None:
    """As `..` does in the kernel."""
    stack.add(directory("d"), directory("x"), file("below"))
    root = stack.add(symlink("s", target), file("s/in", b"1"), link("hard", "s/in"), file("s/.wh.below"))
    assert names(root) == ["below", "hard", "in", "s"]
    assert is_whiteout(root / "below")
    assert (root / "hard").read_bytes() == b"1"


@pytest.mark.parametrize(("name", "place"), [
    ("usr/../bin/x", "bin/x"), ("./a/./b/../../x", "x"), ("a/b/..", "a"), ("s/../x", "x"), ("/a//../x", "x"),
])  # fmt: skip
def test_names_are_cleaned_by_their_text(stack: Stack, name: str, place: str) -> None:
    """A symbolic link on the way has no say, as filepath.Clean has none."""
    root = stack.add(symlink("s", "deep/er"), directory(name) if place == "a" else file(name, b"1"))
    assert (root / place).exists()
    assert not (root / "deep").exists()
    root = stack.add(link("linked", f"./usr/../{place}")) if place != "a" else root
    assert place == "a" or (root / "linked").read_bytes() == b"1"


def test_absolute_names_and_links_mean_the_image(stack: Stack) -> None:
    root = stack.add(file("/etc/passwd", b"ours"), symlink("s", "/etc"), file("s/shadow", b"ours too"))
    assert sorted(os.listdir(root / "etc")) == ["passwd", "shadow"]


def test_what_overlayfs_would_obey_is_not_taken_over(stack: Stack) -> None:
    names = ("trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.opaque", "security.selinux")
    headers = {f"SCHILY.xattr.{name}": "y" for name in names} | {"SCHILY.xattr.trusted.mine": "1"}
    root = stack.add(directory("d", pax_headers=headers), file("f", pax_headers=headers))
    assert survey(root)["d"].xattrs == survey(root)["f"].xattrs == {"trusted.mine": b"1"}


FOREIGN = {
    "SCHILY.xattr.com.apple.provenance": "1",
    "SCHILY.xattr.system.nfs4_acl": "A",
    "SCHILY.xattr.user.mine": "1",
    "SCHILY.xattr.trusted.mine": "1",
}


def test_what_linux_cannot_store_is_left_out_and_counted(stack: Stack, tmp_path: Path) -> None:
    members = (
        file("f", pax_headers=FOREIGN), file("g", pax_headers=FOREIGN), directory("d", pax_headers=FOREIGN),
        (info("s", type=tarfile.SYMTYPE, linkname="x", pax_headers=FOREIGN), b""),
        (info("p", type=tarfile.FIFOTYPE, pax_headers=FOREIGN), b""),
        (info("c", type=tarfile.CHRTYPE, devmajor=1, pax_headers=FOREIGN), b""),
    )  # fmt: skip
    root = tmp_path / "layers" / "0"
    root.mkdir()
    found = unpack(Tar(io.BytesIO(archive(*members)).read), os.fsencode(root), [])
    both = {"user.mine": b"1", "trusted.mine": b"1"}
    assert {name: entry.xattrs for name, entry in survey(root).items() if name != "."} == {
        "f": both, "g": both, "d": both, **{name: {"trusted.mine": b"1"} for name in "spc"}
    }  # fmt: skip
    kinds = {"files": 2, "directories": 1, "symbolic links": 1, "fifos": 1, "devices": 1}
    expected = {(name, kind): n for name in ("com.apple.provenance", "system.nfs4_acl") for kind, n in kinds.items()}
    assert found == expected | {("user.mine", kind): 1 for kind in ("symbolic links", "fifos", "devices")}


@pytest.mark.parametrize("name", ["user.a", "trusted.a", "security.capability"])
def test_what_linux_can_store_is_never_left_out(stack: Stack, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(UnavailableError, match="does not take it"):
        stack.add(file("f", pax_headers={f"SCHILY.xattr.{name}": "1"}))


@pytest.mark.parametrize(("time", "kept"), [
    ("16725225600", unpacking.MTIME_MAX), ("-6795000000", unpacking.MTIME_MIN), ("15032385533.999999999", None),
    ("15032385535", unpacking.MTIME_MAX), ("-2147483647", None), ("-2147483649", unpacking.MTIME_MIN),
])  # fmt: skip
def test_times_are_clamped_to_one_range(stack: Stack, time: str, kept: int | None) -> None:
    """On every filesystem alike, since the same image must have the same digest."""
    members = [make("x", pax_headers={"mtime": time}) for make in (file, directory)]
    seconds, _, fraction = time.partition(".")
    exact = int(seconds) * 10**9 + int(fraction or 0)
    for member in members:
        assert (stack.add(member) / "x").lstat().st_mtime_ns == (exact if kept is None else kept)


@pytest.mark.parametrize("make", [file, directory])
def test_a_time_that_the_filesystem_would_change(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Member]
) -> None:
    utime = os.utime

    def until_2038(path: bytes, ns: tuple[int, int], *, follow_symlinks: bool) -> None:
        utime(path, ns=(ns[0], min(ns[1], (2**31 - 1) * 10**9)), follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "utime", until_2038)
    assert stack.add(file("f", mtime=2**31 - 1))
    with pytest.raises(UnavailableError, match=r"cannot keep a time of 2147483648 s since 1970: set TMPDIR"):
        stack.add(make("x", mtime=2**31))


def test_replacing_an_entry_costs_what_it_replaces(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a look at all others: the names that are looked at are counted, for twice as many entries."""
    looked = 0
    tree = unpacking._tree

    def counted(*arguments: Any) -> Iterator[Any]:
        nonlocal looked
        for name in tree(*arguments):
            looked += 1
            yield name

    monkeypatch.setattr(unpacking, "_tree", counted)
    counts = []
    for number in (100, 200):
        looked = 0
        members = [file(f"d/{n}") for n in range(number)] + [directory(f"e/{n}") for n in range(number)]
        again = [file(f"d/{n}", b"2") for n in range(number)] + [file(f"e/{n}") for n in range(number)]
        root = stack.add(directory("d"), *members, *again)
        assert (root / "d" / "0").read_bytes() == b"2" and (root / "e" / "0").is_file()
        counts.append(looked)
    assert counts == [200, 400]


def test_what_was_in_a_replaced_directory_is_forgotten(stack: Stack) -> None:
    stack.add(file("d/sub/old"), file("keep/old"))
    root = stack.add(
        directory("d", mtime=7), directory("d/sub", mtime=8), file("d/sub/.wh..wh..opq"), file("d/.wh.gone"),
        file("d", b"file"), directory("d", mtime=9), directory("d/sub", mtime=10), file("d/sub/f"),
    )  # fmt: skip
    assert names(root) == ["d", "d/sub", "d/sub/f"]
    assert [(root / name).stat().st_mtime for name in ("d", "d/sub")] == [9, 10]
    assert not is_opaque(root / "d" / "sub")


def test_a_filesystem_that_does_not_take_it(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(UnavailableError, match=r"cannot unpack 'f': the filesystem of .* does not take it .*TMPDIR"):
        stack.add(file("f", pax_headers={"SCHILY.xattr.user.a": "1"}))
