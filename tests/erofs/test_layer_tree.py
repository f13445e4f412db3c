"""Layers applied to a tree in memory: each kind of entry, what lower layers have to do with it, and archives that harm.

Each layer is looked at as an image that stands alone, by a reader of EROFS; test_erofs_mounts.py has the kernel do so.
"""

from __future__ import annotations

import hashlib
import struct
import tarfile

import pytest

from pyerofs.errors import ImageError
from tests.support.erofsstacks import Stack
from tests.support.ordinary import Member
from tests.support.tarballs import info
from tests.support.trees import ACL, CAPABILITY, Entry


@pytest.fixture
def stack() -> Stack:
    return Stack()


def file(name: str, content: bytes = b"", **fields: object) -> Member:
    return info(name, **fields), content


def directory(name: str, **fields: object) -> Member:
    return info(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields}), b""


def symlink(name: str, target: str) -> Member:
    return info(name, type=tarfile.SYMTYPE, linkname=target), b""


def link(name: str, target: str) -> Member:
    return info(name, type=tarfile.LNKTYPE, linkname=target), b""


def names(found: dict[str, Entry]) -> list[str]:
    return sorted(name for name in found if name != ".")


def is_whiteout(entry: Entry) -> bool:
    return (entry.kind, entry.content, entry.mode, entry.mtime_ns) == ("c", "0:0", "0000", 0)


def is_opaque(entry: Entry) -> bool:
    return entry.xattrs.get("trusted.overlay.opaque") == b"y"


def content(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_kind(stack: Stack) -> None:
    xattrs = {
        "SCHILY.xattr.user.a": "1",
        "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.system.posix_acl_access": ACL.decode("utf-8", "surrogateescape"),
        "mtime": "1500000000.123456789",
    }
    found = stack.add(
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
        file("old", mtime=-1000),
    )
    assert (found["."].mode, found["."].owner, found["."].mtime_ns) == ("0751", (3, 0), 1_400_000_000 * 10**9)
    assert found["d"][:4] == ("d", "1777", (5, 6), 1_500_000_001 * 10**9)
    entry = found["d/f"]
    assert entry[:5] == ("-", "6750", (1000, 4_000_000), 1_500_000_000_123_456_789, 7)
    assert entry.xattrs == {"user.a": b"1", "security.capability": CAPABILITY, "system.posix_acl_access": ACL}
    assert entry.links == found["d/hard"].links == ("d/f", "d/hard")
    assert found["d/soft"].content == "/etc/passwd"
    assert found["d/soft"].mode == "0777"
    assert (found["d/char"].content, found["d/block"].content) == ("1:3", "259:70000")
    assert found["d/fifo"][:2] == ("p", "0622")
    assert found["deep"][:4] == ("d", "0755", (0, 0), 0)
    assert found["old"].mtime_ns == -1000 * 10**9


def test_sparse_files_stay_sparse(stack: Stack) -> None:
    headers = {"GNU.sparse.map": "104857600,5", "GNU.sparse.size": "209715200"}
    found = stack.add(file("f", b"hello", pax_headers=headers))
    assert found["f"].size == 200 << 20
    assert found["f"].content == content(b"hello".rjust((100 << 20) + 5, b"\0").ljust(200 << 20, b"\0"))
    assert stack.sizes == [4096]


# Deletions


def test_whiteouts(stack: Stack) -> None:
    stack.add(file("d/a"), file("d/b"), file("e/x"), symlink("s", "d"))
    found = stack.add(file("d/.wh.a"), file(".wh.e"), file("d/.wh.never"), file("nowhere/.wh.x"), file("s/.wh.b"))
    assert names(found) == ["d", "d/a", "d/b", "e"]
    assert all(is_whiteout(found[name]) for name in ("d/a", "d/b", "e"))
    assert names(stack.add(file("d/.wh.a"))) == []  # it is gone already
    assert names(stack.entries()) == ["d", "s"]


def test_the_base_has_nothing_to_delete(stack: Stack) -> None:
    found = stack.add(file(".wh.a"), directory("d"), file("d/.wh..wh..opq"), file("d/.wh.x"), file(".wh..wh..opq"))
    assert names(found) == ["d"]
    assert not is_opaque(found["d"])


@pytest.mark.parametrize("marker_first", [False, True])
def test_opaque_directories(stack: Stack, marker_first: bool) -> None:
    stack.add(file("d/a"), file("d/sub/b"))
    marker, rest = [file("d/.wh..wh..opq")], [file("d/.wh.a"), file("d/new"), file("d/sub/.wh.b"), file("d/sub/c")]
    found = stack.add(directory("d"), *(marker + rest if marker_first else rest + marker))
    assert is_opaque(found["d"])
    assert names(found) == ["d", "d/new", "d/sub", "d/sub/c"]  # a whiteout below would be seen as a device
    assert found["d/sub"].mtime_ns == 0
    assert names(stack.entries()) == ["d", "d/new", "d/sub", "d/sub/c"]
    assert not stack.entries()["d"].xattrs


@pytest.mark.parametrize("deletion_first", [False, True])
def test_deleted_and_made_anew(stack: Stack, deletion_first: bool) -> None:
    """A deletion is for what lies below, wherever in the archive it stands."""
    stack.add(file("d/old"), file("f", b"old"))
    deletions, entries = [file(".wh.d"), file(".wh.f")], [directory("d"), file("d/new"), file("f", b"new")]
    found = stack.add(*(deletions + entries if deletion_first else entries + deletions))
    assert names(found) == ["d", "d/new", "f"]
    assert is_opaque(found["d"])
    assert found["f"].content == content(b"new")
    assert names(stack.entries()) == ["d", "d/new", "f"]


def test_deleted_and_entered_without_an_entry(stack: Stack) -> None:
    stack.add(directory("d", mode=0o700), file("d/old"))
    found = stack.add(file(".wh.d"), file("d/new"))
    assert names(found) == ["d", "d/new"]
    assert is_opaque(found["d"])
    assert found["d"].mode == "0755"
    assert names(stack.entries()) == ["d", "d/new"]


def test_all_deleted_at_the_root(stack: Stack) -> None:
    """overlayfs does not look at a layer's root."""
    stack.add(file("a"), file("d/x"), file("e/y"))
    found = stack.add(file(".wh..wh..opq"), file("d/z"), file("new"))
    assert names(found) == ["a", "d", "d/z", "e", "new"]
    assert is_whiteout(found["a"])
    assert is_whiteout(found["e"])
    assert is_opaque(found["d"])
    assert not is_opaque(found["."])
    assert names(stack.entries()) == ["d", "d/z", "new"]


def test_what_aufs_left(stack: Stack) -> None:
    assert names(stack.add(file(".wh..wh.aufs"), file(".wh..wh.plnk/1"), directory(".wh..wh.orph"))) == []


# Lower layers


def test_directories_passed_through_keep_their_attributes(stack: Stack) -> None:
    stack.add(
        directory(".", mode=0o700, mtime=5),
        directory("d", mode=0o1770, uid=7, mtime=1_500_000_000, pax_headers={"SCHILY.xattr.user.k": "v"}),
        file("d/e/f"),
    )
    found = stack.add(file("d/new"))
    assert found["d"][:4] == ("d", "1770", (7, 0), 1_500_000_000 * 10**9)
    assert found["d"].xattrs == {"user.k": b"v"}
    assert found["."].mode == "0700"
    assert stack.add(file("d/e/g"))["d"] == found["d"]
    assert stack.entries()["d"] == found["d"]


@pytest.mark.parametrize("size", [7, 5000, 3 << 20])
def test_hard_links_to_lower_layers(stack: Stack, size: int) -> None:
    data = b"content" * (size // 7)
    stack.add(directory("d", mode=0o711), file("d/f", data, mode=0o4755, uid=9, mtime=77), symlink("s", "x"))
    found = stack.add(link("g", "d/f"), link("t", "s"))
    assert found["g"].links == ("d/f", "g")
    assert found["g"][:5] == ("-", "4755", (9, 0), 77 * 10**9, len(data))
    assert found["g"].content == content(data)
    assert found["d"].mode == "0711"
    assert found["t"].content == "x"
    assert stack.entries()["g"] == found["g"]
    assert stack.entries()["t"].links == ("s", "t")


def test_a_group_of_links_is_not_parted_when_layers_are_merged(stack: Stack) -> None:
    stack.add(file("a", b"content"), link("b", "a"))
    stack.add(link("c", "b"))
    assert stack.entries()["a"].links == ("a", "b", "c")


def test_a_file_that_was_linked_and_deleted(stack: Stack) -> None:
    """How a file that got another name may come."""
    stack.add(file("old", b"content"))
    found = stack.add(link("new", "old"), file(".wh.old"))
    assert is_whiteout(found["old"])
    assert found["new"].content == content(b"content")
    assert found["new"].links == ("new",)
    assert stack.entries()["new"].links == ("new",)


@pytest.mark.parametrize("target", ["d/f", "g", "never"])
def test_hard_links_respect_deletions(stack: Stack, target: str) -> None:
    stack.add(file("d/f"), file("g"))
    stack.add(file("d/.wh..wh..opq"), file("d/x"), file(".wh.g"))
    with pytest.raises(ImageError, match=f"a hard link to '{target}', which is not there"):
        stack.add(link("h", target))


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "x/../usr/lib", "two", "../../usr/lib"])
def test_links_on_the_way_are_followed_within_the_image(stack: Stack, lower: bool, target: str) -> None:
    """Those with more ".." than there are directories end at the root, as in the kernel."""
    base = [directory("usr/lib"), directory("x"), symlink("two", "usr/lib"), symlink("lib", target)]
    if lower:
        stack.add(*base)
        found = stack.add(file("lib/f", b"1"), link("g", "lib/f"))
        assert "lib" not in found
    else:
        found = stack.add(*base, file("lib/f", b"1"), link("g", "lib/f"))
    assert found["usr/lib/f"].content == found["g"].content == content(b"1")
    assert found["usr/lib/f"].links == ("g", "usr/lib/f")


@pytest.mark.parametrize("target", ["..", "../..", "../../../x/../d/..", "/../..", "d/../../../"])
def test_a_link_that_leads_out_ends_at_the_root(stack: Stack, target: str) -> None:
    """As `..` does in the kernel."""
    stack.add(directory("d"), directory("x"), file("below"))
    found = stack.add(symlink("s", target), file("s/in", b"1"), link("hard", "s/in"), file("s/.wh.below"))
    assert names(found) == ["below", "hard", "in", "s"]
    assert is_whiteout(found["below"])
    assert found["hard"].content == content(b"1")


@pytest.mark.parametrize("lower", [False, True])
def test_a_link_that_ways_have_led_through_is_replaced(stack: Stack, lower: bool) -> None:
    base = [directory("usr/lib"), symlink("lib", "usr/lib")]
    rest = [file("lib/before"), directory("lib"), file("lib/after")]
    if lower:
        stack.add(*base)
        stack.add(*rest)
    else:
        stack.add(*base, *rest)
    assert names(stack.entries()) == ["lib", "lib/after", "usr", "usr/lib", "usr/lib/before"]


def test_dots_in_names_are_taken_by_their_letters(stack: Stack) -> None:
    found = stack.add(
        file("usr/../bin/x"), file("./y/./z"), file("no/where/../../w"), symlink("s", "deep/er"), file("s/../t"),
        link("bin/../v", "./usr/../bin/x"),
    )  # fmt: skip
    assert names(found) == ["bin", "bin/x", "s", "t", "v", "w", "y", "y/z"]


# Entries that come again


def test_later_entries_replace_earlier_ones(stack: Stack) -> None:
    found = stack.add(
        file("a", b"1"), link("b", "a"), file("a", b"2"),
        directory("d", mtime=5), file("d/x"), file("d", b"file"),
        symlink("s", "a"), directory("s"), file("s/in"),
        directory("again", mode=0o700, pax_headers={"SCHILY.xattr.user.a": "1"}), file("again/x"),
        directory("again", mode=0o711),
    )  # fmt: skip
    assert found["a"].content == content(b"2")
    assert found["b"].content == content(b"1")
    assert found["d"].content == content(b"file")
    assert "s/in" in found
    assert (found["again"].mode, "again/x" in found, found["again"].xattrs) == ("0711", True, {})


def test_a_directory_that_was_a_file_meanwhile_hides_what_is_below(stack: Stack) -> None:
    stack.add(file("d/old"))
    found = stack.add(file("d"), directory("d"), file("d/new"))
    assert is_opaque(found["d"])
    assert names(stack.entries()) == ["d", "d/new"]


def test_a_directory_below_that_becomes_a_file(stack: Stack) -> None:
    stack.add(file("d/old"), file("f"))
    stack.add(file("d"), directory("f"), file("f/in"))
    assert names(stack.entries()) == ["d", "f", "f/in"]


def test_what_was_in_a_replaced_directory_is_forgotten(stack: Stack) -> None:
    stack.add(file("d/sub/old"), file("keep/old"))
    found = stack.add(
        directory("d", mtime=7), directory("d/sub", mtime=8), file("d/sub/.wh..wh..opq"), file("d/.wh.gone"),
        file("d", b"file"), directory("d", mtime=9), directory("d/sub", mtime=10), file("d/sub/f"),
    )  # fmt: skip
    assert names(found) == ["d", "d/sub", "d/sub/f"]
    assert [found[name].mtime_ns for name in ("d", "d/sub")] == [9 * 10**9, 10 * 10**9]
    assert is_opaque(found["d"]) and not is_opaque(found["d/sub"])
    assert names(stack.entries()) == ["d", "d/sub", "d/sub/f", "keep", "keep/old"]


@pytest.mark.parametrize("time", ["16725225600", "-6795000000", "15032385533.999999999", "-2147483649"])
def test_times_of_other_centuries_are_kept(stack: Stack, time: str) -> None:
    seconds, _, fraction = time.partition(".")
    found = stack.add(*(make(make.__name__, pax_headers={"mtime": time}) for make in (file, directory)))
    exact = int(seconds) * 10**9 + int(fraction or 0)
    assert found["file"].mtime_ns == found["directory"].mtime_ns == exact


# Harm


@pytest.mark.parametrize(("members", "error"), [
    ([file("../out")], "it leads out of the image"),
    ([file("a/../../out")], "it leads out of the image"),
    ([file("/../out")], "it leads out of the image"),
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
    ([symlink("a", "x" * 4096)], "a target of 4096 bytes; at most 4095"),
    ([(info("a", type=tarfile.CHRTYPE), b"")], "a character device 0:0"),
    ([file("n" * 256)], "a name of 256 bytes; at most 255"),
    ([file("n" * 256 + "/x")], "a name of 256 bytes; at most 255"),
    ([file("n/" * 400 + "f")], "it lies 401 directories deep"),
    ([directory("n/" * 300), symlink("s", "n/" * 300), file("s/" + "n/" * 300 + "f")], "directories deep"),
    ([file("huge", b"x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 50)})], "too fine holes"),
    ([file("f", pax_headers={"SCHILY.xattr.user.a": "x" * 65_536})], "has 65536 bytes: at most 65535"),
])  # fmt: skip
def test_harm(stack: Stack, members: list[Member], error: str) -> None:
    with pytest.raises(ImageError, match=error) as caught:
        stack.add(*members)
    assert "\n" not in str(caught.value)


def test_absolute_names_and_links_mean_the_image(stack: Stack) -> None:
    found = stack.add(
        file("/etc/passwd", b"ours"), symlink("s", "/etc"), file("s/shadow", b"ours too"), symlink("up", "../.."),
        file("up/here"),
    )  # fmt: skip
    assert names(found) == ["etc", "etc/passwd", "etc/shadow", "here", "s", "up"]


def test_what_overlayfs_would_obey_is_not_taken_over(stack: Stack) -> None:
    names = ("trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.opaque", "security.selinux")
    headers = {f"SCHILY.xattr.{name}": "y" for name in names} | {"SCHILY.xattr.trusted.mine": "1"}
    found = stack.add(directory("d", pax_headers=headers), file("f", pax_headers=headers))
    assert found["d"].xattrs == found["f"].xattrs == {"trusted.mine": b"1"}
    assert not stack.layers.left_out


def test_xattrs_that_cannot_be_stored_are_left_out(stack: Stack) -> None:
    headers = {"SCHILY.xattr.system.nfs4_acl": "x", "SCHILY.xattr.user.a": "y", "SCHILY.xattr.user.": "z"}
    soft = info("s", type=tarfile.SYMTYPE, linkname="f", pax_headers=headers)
    found = stack.add(file("f", pax_headers=headers), file("g", pax_headers=headers), (soft, b""))
    assert (found["f"].xattrs, found["s"].xattrs) == ({"user.a": b"y"}, {})
    assert stack.layers.left_out == {
        ("system.nfs4_acl", "files"): 2,
        ("user.", "files"): 2,
        ("system.nfs4_acl", "symbolic links"): 1,
        ("user.a", "symbolic links"): 1,
        ("user.", "symbolic links"): 1,
    }


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = ((1 << bit) for bit in range(6))


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@pytest.mark.parametrize(("value", "mode", "is_kept"), [
    (ACL, "2750", True),
    (acl((USER_OBJ, 7, -1), (GROUP_OBJ, 7, -1), (GROUP, 1, 5), (MASK, 1, -1), (OTHER, 4, -1)), "2714", True),
    (acl((USER_OBJ, 6, -1), (GROUP_OBJ, 4, -1), (MASK, 0, -1), (OTHER, 0, -1)), "2600", True),
    (acl((USER_OBJ, 6, -1), (GROUP_OBJ, 4, -1), (OTHER, 0, -1)), "2640", False),  # which only says the mode
    (acl((USER_OBJ, 6, -1), (USER, 1, 5), (GROUP_OBJ, 4, -1), (OTHER, 0, -1)), "2111", None),
    (acl((USER_OBJ, 6, -1), (USER, 1, -1), (GROUP_OBJ, 4, -1), (MASK, 0, -1), (OTHER, 0, -1)), "2111", None),
    (acl((USER_OBJ, 8, -1), (GROUP_OBJ, 4, -1), (OTHER, 0, -1)), "2111", None),
    (acl((USER_OBJ, 6, -1), (OTHER, 0, -1)), "2111", None),
    (ACL[:-1], "2111", None),
    (b"\1" + ACL[1:], "2111", None),
    (b"", "2111", None),
])  # fmt: skip
def test_an_acl_changes_the_mode(stack: Stack, value: bytes, mode: str, is_kept: bool | None) -> None:
    """As setxattr(2) does; one that is not valid is left out."""
    name = "system.posix_acl_access"
    headers = {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")}
    found = stack.add(file("f", mode=0o2111, pax_headers=headers))["f"]
    assert (found.mode, found.xattrs) == (mode, {name: value} if is_kept else {})
    assert stack.layers.left_out == ({(name, "files"): 1} if is_kept is None else {})
