from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.erofs.on_disk import checksum
from pyerofs.erofs.superblock import HEAD, OFFSET, check_checksum, check_size, first_look, parse
from pyerofs.errors import ImageError

quick = settings(deadline=None, derandomize=True, print_blob=True, max_examples=200)


def image(
    *,
    bits: int = 12,
    blocks: int = 7,
    incompat: int = 0,
    high: int = 36,
    devices: int = 0,
    volume: bytes = b"",
    root: int = 0,
) -> bytes:
    head = bytearray(4096)
    struct.pack_into("<IIIBBH", head, OFFSET, 0xE0F5E1E2, 0, 3, bits, 0, high)
    struct.pack_into("<I", head, OFFSET + 36, blocks)
    head[OFFSET + 48 : OFFSET + 64] = bytes(range(16))
    head[OFFSET + 64 : OFFSET + 64 + len(volume)] = volume
    struct.pack_into("<IHHH", head, OFFSET + 80, incompat, 0, devices, 0)
    struct.pack_into("<Q", head, OFFSET + 112, root)
    return bytes(head)


def test_fields() -> None:
    superblock = parse(image(volume=b"vol", incompat=8, devices=2))
    assert superblock.block_size == 4096
    assert superblock.blocks == 7
    assert superblock.size == 28672
    assert superblock.feature_compat == 3
    assert superblock.feature_incompat == 8
    assert superblock.extra_devices == 2
    assert superblock.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert superblock.volume_name == "vol"


def test_fields_that_a_feature_switches_on() -> None:
    assert parse(image(high=5)).blocks == 7
    assert parse(image(high=5, incompat=0x80, root=36)).blocks == 7 + (5 << 32)
    assert parse(image(high=36, incompat=0x80)).blocks == 7  # a root that is named where it always was
    assert parse(image(high=5, root=36)).blocks == 7
    assert parse(image(devices=5)).extra_devices == 0
    assert parse(image(volume=b"0123456789abcdef")).volume_name == "0123456789abcdef"
    assert parse(image(volume=b"\xff")).volume_name == "\\xff"


def test_smallest_head() -> None:
    assert parse(image()[:HEAD]).blocks == 7
    with pytest.raises(ImageError, match="truncated: 1151 bytes"):
        parse(image()[: HEAD - 1])


@pytest.mark.parametrize("bits", [9, 12])
def test_block_sizes(bits: int) -> None:
    assert parse(image(bits=bits)).block_size == 1 << bits


@pytest.mark.parametrize("at", range(4))
def test_every_byte_of_the_magic_counts(at: int) -> None:
    head = bytearray(image())
    head[OFFSET + at] ^= 1
    with pytest.raises(ImageError, match="not an EROFS image: there is no EROFS superblock in it"):
        parse(bytes(head))


def test_block_size_and_page_size() -> None:
    assert parse(image(bits=14), page_size=16384).block_size == 16384
    with pytest.raises(ImageError, match=r"blocks of 16384 bytes, more than this kernel's pages of 4096.*-b4096"):
        parse(image(bits=14))
    for bits in (0, 8, 17, 255):
        with pytest.raises(ImageError, match="corrupt"):
            parse(image(bits=bits), page_size=65536)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x1f\x8b\x08" + bytes(2000), "gzip"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(2000), "zstd"),
        (bytes(257) + b"ustar\x00" + bytes(2000), "tar archive"),
        (b"hsqs" + bytes(2000), "squashfs"),
        (bytes(1080) + b"\x53\xef" + bytes(2000), "ext4"),
        (b"\xcd\xe4\xec\x67" + bytes(28), "chunk index"),
        (b'{"schemaVersion": 2}', "JSON"),
        (b"<html>", "HTML"),
        (bytes(4096), "only zeros"),
        (b"x" * 4096, "no EROFS superblock"),
        (b"", "only 0 bytes"),
        (b"x" * 1023, "only 1023 bytes"),
    ],
)
def test_not_erofs(head: bytes, name: str) -> None:
    with pytest.raises(ImageError, match="not an EROFS image") as caught:
        parse(head)
    assert name in str(caught.value)


def test_size() -> None:
    superblock = parse(image(blocks=7))
    check_size(superblock, 7 * 4096)
    check_size(superblock, 7 * 4096 + 1)
    with pytest.raises(ImageError, match="truncated: it has 28671 bytes, and 28672"):
        check_size(superblock, 7 * 4096 - 1)


@pytest.mark.skipif(not shutil.which("mkfs.erofs"), reason="needs mkfs.erofs")
@pytest.mark.parametrize("options", [
    [], ["-zlz4"], ["-zlz4hc,12"], ["-zlz4", "-C65536"], ["-zlz4", "-Elegacy-compress"], ["-Eforce-inode-compact"],
    ["-Eforce-inode-extended"], ["-Enoinline_data"], ["--chunksize=8192"], ["-x-1"], ["-T0"], ["--all-root"],
], ids=" ".join)  # fmt: skip
def test_a_real_image(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"text " * 20_000)
    uuid = "c1b9d5a2-f162-11cf-9ece-0020afc76f16"
    target = tmp_path / "image"
    command = ["mkfs.erofs", *options, "-U", uuid, str(target), str(tmp_path / "tree")]
    subprocess.run(command, check=True, capture_output=True)
    superblock = parse(target.read_bytes()[:HEAD])
    assert superblock.uuid == uuid
    assert superblock.size == target.stat().st_size
    check_size(superblock, target.stat().st_size)
    check_checksum(superblock, target.read_bytes()[: superblock.checked])
    with target.open("rb") as file:
        first_look(file, "the image")


@given(st.binary(max_size=2000) | st.binary(min_size=128, max_size=200).map(lambda tail: image()[: OFFSET + 4] + tail))
@quick
def test_any_bytes_are_a_superblock_or_an_image_error(head: bytes) -> None:
    try:
        superblock = parse(head, 65536)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert superblock.size >= 0


@pytest.mark.parametrize("bits", [9, 10, 11, 12, 16])
def test_the_checksum_covers_the_rest_of_its_block(bits: int) -> None:
    whole = image(bits=bits).ljust(65536, b"x")
    superblock = parse(whole, 65536)
    assert superblock.checked == {9: 1536, 10: 2048, 11: 2048, 12: 4096, 16: 65536}[bits]
    with pytest.raises(ImageError, match="its checksum is wrong"):
        check_checksum(superblock, whole)


def test_the_checksum_that_mkfs_and_the_kernel_have() -> None:
    """CRC-32C by RFC 3720, B.4, but for the inversion at its end."""
    whole = bytearray(image())
    whole[OFFSET + 4 : OFFSET + 8] = checksum(whole[OFFSET : OFFSET + 4] + bytes(4) + whole[OFFSET + 8 :]).to_bytes(
        4, "little"
    )
    block = bytes(whole)
    check_checksum(parse(block), block)
    for at in (OFFSET, OFFSET + 5, OFFSET + 60, 4095):
        wrong = bytearray(block)
        wrong[at] ^= 1
        with pytest.raises(ImageError, match="its checksum is wrong"):
            check_checksum(parse(block), bytes(wrong))
    with pytest.raises(ImageError, match="its checksum is wrong"):
        check_checksum(parse(block), block[:-1])
    without = bytearray(block)
    without[OFFSET + 8] &= 0xFE
    check_checksum(parse(bytes(without)), bytes(without))


def mbr(start: bytes = b"") -> bytes:
    head = bytearray(8192)
    head[: len(start)] = start
    head[446 + 4] = 0x83
    head[510:512] = b"\x55\xaa"
    return bytes(head)


@pytest.mark.parametrize(("data", "error"), [
    (b"\x3a\xff\x26\xed".ljust(8192, b"\0"), "a sparse Android image: `simg2img`"),
    (bytes(512) + b"EFI PART".ljust(7680, b"\0"), "a whole disk with a partition table"),
    (bytes(4096) + b"EFI PART".ljust(4096, b"\0"), "a whole disk with a partition table"),
    (mbr(), "a whole disk with a partition table"),
    (mbr()[:446] + b"no disk's boot code".ljust(64, b"x") + b"\x55\xaa".ljust(7682, b"\0"), "no EROFS superblock"),
    (b"short", "it has only 5 bytes"),
    (image(), "truncated: it has 4096 bytes, and 28672"),
    (image(bits=16).ljust(1 << 20, b"\0"), "blocks of 65536 bytes"),
])  # fmt: skip
def test_the_first_look_at_a_file(tmp_path: Path, data: bytes, error: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(ImageError, match=f"^the name: .*{error}"):
        first_look(file, "the name")


def test_the_first_look_at_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(image().ljust(28672, b"\0"))
    with path.open("rb") as file:
        first_look(file, "the name")
