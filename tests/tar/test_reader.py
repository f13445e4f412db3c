"""Tar archives: what Python and GNU tar write is read as it was meant, and everything unsound is refused."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.errors import ImageError
from pyerofs.tar import reader as tar_reader
from pyerofs.tar.reader import Tar, TarEntry
from tests.support.needs import need
from tests.support.tarballs import archive, info

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


class Read(NamedTuple):
    entry: TarEntry
    content: bytes


def read(data: bytes, piece: int = 1 << 30) -> list[Read]:
    """All entries, through reads of up to `piece` bytes."""
    stream = io.BytesIO(data)
    tar = Tar(lambda count: stream.read(min(count, piece)))
    found = []
    for entry in tar:
        content = bytearray(entry.size)
        for offset, part in tar.data():
            content[offset : offset + len(part)] = part
        found.append(Read(entry, bytes(content)))
    return found


def one(**fields: object) -> bytearray:
    return bytearray(archive((info("f", **fields), b"hello"), kind=tarfile.USTAR_FORMAT))


def sealed(data: bytearray) -> bytes:
    """With the checksum of its first header put right."""
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@pytest.mark.parametrize("name", FORMATS)
def test_kinds(name: str) -> None:
    members = [
        (info("dir", type=tarfile.DIRTYPE, mode=0o1777), b""),
        (info("dir/file", mode=0o4755, uid=1000, gid=1001, mtime=1_600_000_000), b"content" * 999),
        (info("hard", type=tarfile.LNKTYPE, linkname="dir/file"), b""),
        (info("soft", type=tarfile.SYMTYPE, linkname="../x"), b""),
        (info("char", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (info("block", type=tarfile.BLKTYPE, devmajor=259, devminor=70_000), b""),
        (info("fifo", type=tarfile.FIFOTYPE), b""),
        (info("old", type=tarfile.AREGTYPE), b"x"),
        (info("contiguous", type=tarfile.CONTTYPE), b"y"),
    ]
    found = {r.entry.name: r for r in read(archive(*members, kind=FORMATS[name]), piece=1000)}
    assert len(found) == len(members)
    entry = found[b"dir/file"].entry
    assert entry[2:7] == (0o4755, 1000, 1001, 1_600_000_000 * 10**9, 6993)
    assert found[b"dir/file"].content == b"content" * 999
    assert (found[b"hard"].entry.kind, found[b"hard"].entry.link) == (tar_reader.HARD_LINK, b"dir/file")
    assert (found[b"soft"].entry.kind, found[b"soft"].entry.link) == (tar_reader.SYMLINK, b"../x")
    assert (found[b"char"].entry.kind, found[b"char"].entry.device) == (tar_reader.CHARACTER, (1, 3))
    assert found[b"block"].entry.device == (259, 70_000)
    assert found[b"fifo"].entry.kind == tar_reader.FIFO
    assert [found[n].content for n in (b"old", b"contiguous")] == [b"x", b"y"]


@pytest.mark.parametrize("name", ["gnu", "pax"])
def test_what_does_not_fit_the_header(name: str) -> None:
    long = "d/" * 300 + "Ünï" * 80
    members = [
        (info(long, uid=4_000_000, gid=4_000_001, mtime=-3), b"1"),
        (info("link", type=tarfile.SYMTYPE, linkname="t/" * 2000), b""),
        (info(os.fsdecode(b"not \xff utf-8")), b"2"),
        (info("far", mtime=2**35), b""),
    ]
    found = read(archive(*members, kind=FORMATS[name]))
    assert [r.entry.name for r in found] == [long.encode(), b"link", b"not \xff utf-8", b"far"]
    assert found[0].entry[3:6] == (4_000_000, 4_000_001, -3 * 10**9)
    assert found[1].entry.link == b"t/" * 2000
    assert found[3].entry.mtime == 2**35 * 10**9


def test_ustar_prefix() -> None:
    name = "p" * 100 + "/" + "n" * 90
    assert read(archive((info(name), b""), kind=tarfile.USTAR_FORMAT))[0].entry.name == name.encode()


@pytest.mark.parametrize(("text", "time"), [
    ("1600000000.123456789", 1_600_000_000_123_456_789), ("1600000000.5", 1_600_000_000_500_000_000), ("7", 7 * 10**9),
    ("0.0000000019", 1), ("-1.25", -1_250_000_000), ("12.", 12 * 10**9),
])  # fmt: skip
def test_times_to_the_nanosecond(text: str, time: int) -> None:
    assert read(archive((info("f", pax_headers={"mtime": text}), b"")))[0].entry.mtime == time


def test_xattrs() -> None:
    values = {"user.a": b"1", "user.binary": bytes(range(256)), "user.empty": b"", "security.capability": b"\n=\n\0"}
    headers = {f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in values.items()}
    found = read(archive((info("f", pax_headers=headers), b"x"), (info("g"), b"")))
    assert found[0].entry.xattrs == {key.encode(): value for key, value in values.items()}
    assert found[1].entry.xattrs == {}


def raw(name: str, kind: bytes, content: bytes = b"") -> bytes:
    """A header and its content, without an archive's end."""
    whole = archive((info(name, type=kind), content), kind=tarfile.USTAR_FORMAT)
    return whole[: 512 + len(content) + -len(content) % 512]


@pytest.mark.parametrize(("headers", "name", "link"), [
    ([(b"x", b"13 path=long\n")], b"long", b"to"),
    ([(b"L", b"gnu\0"), (b"x", b"13 path=long\n")], b"gnu", b"to"),
    ([(b"x", b"13 path=long\n"), (b"L", b"gnu\0")], b"gnu", b"to"),
    ([(b"x", b"17 linkpath=long\n"), (b"K", b"gnu\0")], b"short", b"gnu"),
    ([(b"x", b"13 path=long\n"), (b"L", b"\0")], b"long", b"to"),
    ([(b"x", b"13 path=long\n"), (b"g", b"12 path=all\n")], b"short", b"to"),
    ([(b"L", b"gnu\0"), (b"g", b"12 path=all\n")], b"short", b"to"),
    ([(b"x", b"8 path=\n")], b"short", b"to"),
])  # fmt: skip
def test_extended_headers_that_contradict_each_other(
    headers: list[tuple[bytes, bytes]], name: bytes, link: bytes
) -> None:
    """As Go's archive/tar reads them, by whose reading images are made and unpacked."""
    last = archive((info("short", type=tarfile.SYMTYPE, linkname="to"), b""), kind=tarfile.USTAR_FORMAT)
    entry = read(b"".join(raw("extended", kind, text) for kind, text in headers) + last)[0].entry
    assert (entry.name, entry.link) == (name, link)


def test_global_headers_have_no_effect() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uid": "5", "x": "y"}) as tar:
        tar.addfile(info("f"))
    assert read(out.getvalue())[0].entry.uid == 0


@pytest.mark.parametrize("options", [
    ["--format=gnu"], ["--format=pax", "--sparse-version=0.0"], ["--format=pax", "--sparse-version=0.1"],
    ["--format=pax", "--sparse-version=1.0"],
], ids=" ".join)  # fmt: skip
def test_sparse_files_of_gnu_tar(tmp_path: Path, options: list[str]) -> None:
    chance = random.Random(1)
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for number in range(60):  # more than one header's worth of a map
            file.seek(number * 65536 + 4096)
            file.write(chance.randbytes(4096))
        file.truncate(60 * 65536)
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 1 << 20)
    (tmp_path / "after").write_bytes(b"still in step")
    command = ["tar", "-C", str(tmp_path), "--sparse", *options, "-cf", "-", "sparse", "hole", "after"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(data) < 1 << 20
    found = {r.entry.name: r.content for r in read(data, piece=777)}
    assert found == {b"sparse": path.read_bytes(), b"hole": bytes(1 << 20), b"after": b"still in step"}
    assert [r.entry.name for r in read(data)] == [b"sparse", b"hole", b"after"]


@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_gnu_tar(tmp_path: Path, kind: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"data" * 1000)
    os.utime(tmp_path / "d" / "f", ns=(0, 1_500_000_000_123_456_789))
    data = subprocess.run(["tar", "-C", tmp_path, f"--format={kind}", "-cf", "-", "."], check=True, capture_output=True)
    found = {r.entry.name: r for r in read(data.stdout)}
    assert list(found) == [b"./", b"./d/", b"./d/f"]
    assert found[b"./d/"].entry.kind == tar_reader.DIRECTORY
    assert found[b"./d/f"].content == b"data" * 1000
    assert found[b"./d/f"].entry.mtime // 10**9 == 1_500_000_000
    if kind == "posix":
        assert found[b"./d/f"].entry.mtime == 1_500_000_000_123_456_789


@pytest.mark.parametrize("kind", ["tar", "ustar"])
def test_cpio(tmp_path: Path, kind: str) -> None:
    """Another program that writes tar archives, with blanks around its numbers."""
    need("cpio", "cpio")
    (tmp_path / "f").write_bytes(b"data" * 1000)
    (tmp_path / "s").symlink_to("f")
    command = ["cpio", "-o", "-H", kind, "--quiet"]
    data = subprocess.run(command, cwd=tmp_path, input=b"f\ns\n", check=True, capture_output=True).stdout
    found = {r.entry.name: r for r in read(data)}
    assert (found[b"f"].content, found[b"s"].entry.link) == (b"data" * 1000, b"f")


def put(data: bytearray, at: int, field: bytes) -> bytearray:
    data[at : at + len(field)] = field
    return data


@pytest.mark.parametrize("data", [
    put(one(), 100, b"   644 \0"), put(one(), 100, b"0000644\0"), put(one(), 100, b"644\0\0\0\0\0"),
    put(one(), 124, b"\x80" + bytes(10) + b"\x05"), put(one(), 124, b"          5 "), put(one(), 257, bytes(8)),
    put(one(), 257, b"ustar  \0"), put(one(), 329, b" " * 16),
], ids=range(8))  # fmt: skip
def test_how_numbers_and_versions_may_be_written(data: bytearray) -> None:
    [found] = read(sealed(data))
    assert (found.entry.mode, found.content) == (0o644, b"hello")


def test_checksums_of_signed_bytes() -> None:
    """As some old programs computed them."""
    data = put(one(), 0, b"\xff\xfe")
    data[148:156] = b" " * 8
    total = sum(byte - 256 if byte > 127 else byte for byte in data[:512])
    data[148:156] = b"%06o\0 " % total
    assert read(bytes(data))[0].entry.name == b"\xff\xfe"


def test_star_s_short_prefix() -> None:
    """The last part of the prefix's field has times there."""
    data = put(put(one(), 345, b"p" * 131 + b"12345678901\0" * 2), 508, b"tar\0")
    assert read(sealed(data))[0].entry.name == b"p" * 131 + b"/f"


def test_solaris_extended_headers() -> None:
    data = raw("x", b"X", b"13 path=long\n") + archive((info("f"), b"1"), kind=tarfile.USTAR_FORMAT)
    assert read(data)[0].entry.name == b"long"


def test_content_that_is_passed_over_may_be_skipped() -> None:
    data = archive((info("a"), b"1" * 3000), (info("b"), b"2" * 700))
    stream = io.BytesIO(data)

    def skip(count: int) -> bool:
        return stream.seek(count, os.SEEK_CUR) <= len(data)

    places = []
    tar = Tar(stream.read, skip)
    for entry in tar:
        places.append((entry.name, data[tar.position : tar.position + entry.size]))
    assert places == [(b"a", b"1" * 3000), (b"b", b"2" * 700)]
    stream = io.BytesIO(data[:2000])
    with pytest.raises(ImageError, match="an end within an entry"):
        list(Tar(stream.read, lambda count: stream.seek(count, os.SEEK_CUR) <= 2000))


def test_skipped_content() -> None:
    data = archive((info("a"), b"1" * 3000), (info("b"), b"2"))
    stream = io.BytesIO(data)
    assert [entry.name for entry in Tar(stream.read)] == [b"a", b"b"]


def test_the_end() -> None:
    data = bytes(one())
    assert len(read(data)) == 1
    assert len(read(data[:1024])) == 1  # no empty blocks at all
    assert len(read(data[: 1024 + 512])) == 1
    assert len(read(data + b"whatever comes behind it")) == 1
    assert read(b"") == []
    assert read(bytes(1024)) == []


@pytest.mark.parametrize(("data", "error"), [
    (bytes(one())[:300], "an end within a header"),
    (bytes(one())[:512], "an end within an entry"),
    (bytes(one())[:1000], "an end within an entry"),
    (b"x" * 512, "a header with"),
    (b"0" * 512, "no tar header at its start"),
    (bytes(one())[:1024] + b"0" * 512, "wrong checksum"),
    (bytes(one())[:1024] + bytes(512) + bytes(one()), "an empty header in the middle"),
    (sealed(one(type=b"Z")), "unknown type b'Z'"),
    (sealed(one(type=b"V")), "unknown type b'V'"),
    (archive((info("f", pax_headers={"uid": "-1"}), b"")), "for a number"),
    (archive((info("f", pax_headers={"uid": "4294967295"}), b"")), "owner"),
    (archive((info("f", pax_headers={"mtime": "soon"}), b"")), "for a number"),
    (archive((info("f", pax_headers={"mtime": "1.x"}), b"")), "for a time"),
    (archive((info("f", pax_headers={"path": "a\0b"}), b"")), "a NUL in the name"),
    (archive((info("f", pax_headers={"SCHILY.xattr.a\0": "x"}), b"")), "broken pax header"),
    (archive((info("f", pax_headers={"mtime": "9" * 20}), b"")), "a time of"),
    (archive((info("f", type=tarfile.CHRTYPE, devmajor=4096), b"")), "a device with the numbers 4096:0"),
    (archive((info("f", pax_headers={"GNU.sparse.map": "0,1,2", "GNU.sparse.size": "9"}), b"x")), "odd number"),
    (archive((info("f", pax_headers={"GNU.sparse.map": "5,1,0,1", "GNU.sparse.size": "9"}), b"xy")), "not in order"),
    (archive((info("f", pax_headers={"GNU.sparse.map": "5,1", "GNU.sparse.size": "5"}), b"x")), "does not fit"),
    (archive((info("f", pax_headers={"GNU.sparse.map": "0,9", "GNU.sparse.size": "9"}), b"x")), "does not fit"),
    (archive((info("f", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), b"x")), "does not end"),
    (archive((info("f", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), b"99999999\n".ljust(999))),
     "does not end"),
])  # fmt: skip
def test_unsound(data: bytes, error: str) -> None:
    with pytest.raises(ImageError, match=error):
        read(data)


def test_huge_headers_are_not_loaded() -> None:
    data = one(type=b"x")
    data[124:136] = b"%011o\0" % (1 << 30)
    with pytest.raises(ImageError, match="an extended header of 1073741824 bytes"):
        read(sealed(data))


@pytest.mark.parametrize(
    "record",
    [b"5 a=b\n", b"7 a=b\n", b"6 a=b ", b"9999 a=b\n", b"x a=b\n", b"6 abb\n", b"", b"3 \n", b"6 a=b\nno blank"],
)
def test_pax_records(record: bytes) -> None:
    data = archive(
        (info("x", type=tarfile.XHDTYPE), record.ljust(1, b"z")), (info("f"), b""), kind=tarfile.USTAR_FORMAT
    )
    with pytest.raises(ImageError, match=r"broken pax header|for a number"):
        read(data)


@given(st.data())
def test_nothing_but_image_errors(data: st.DataObject) -> None:
    headers = {"SCHILY.xattr.user.a": "b", "GNU.sparse.map": "0,1,5,4", "GNU.sparse.size": "20"}
    spoiled = bytearray(archive((info("f" * 200, pax_headers=headers), b"hello"), (info("g"), b"y")))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 2047))
        spoiled[at] = data.draw(st.integers(0, 255))
        if at % 512 >= 157 or at % 512 < 148:
            start = at // 512 * 512
            spoiled[start + 148 : start + 156] = b" " * 8
            spoiled[start + 148 : start + 156] = b"%06o\0 " % sum(spoiled[start : start + 512])
    stream = io.BytesIO(bytes(spoiled))
    tar = Tar(stream.read)
    try:
        for _entry in tar:
            for _piece in tar.data():
                pass
    except ImageError as error:
        assert "\n" not in str(error)
