from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.errors import ImageError
from pyerofs.superblock import HEAD, OFFSET, check_size, parse

quick = settings(deadline=None, derandomize=True, print_blob=True, max_examples=200)


def image(
    *, bits: int = 12, blocks: int = 7, incompat: int = 0, high: int = 36, devices: int = 0, volume: bytes = b""
) -> bytes:
    head = bytearray(4096)
    struct.pack_into("<IIIBBH", head, OFFSET, 0xE0F5E1E2, 0, 3, bits, 0, high)
    struct.pack_into("<I", head, OFFSET + 36, blocks)
    head[OFFSET + 48 : OFFSET + 64] = bytes(range(16))
    head[OFFSET + 64 : OFFSET + 64 + len(volume)] = volume
    struct.pack_into("<IHHH", head, OFFSET + 80, incompat, 0, devices, 0)
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
    assert parse(image(high=5, incompat=0x80)).blocks == 7 + (5 << 32)
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
@pytest.mark.parametrize("options", [[], ["-zlz4"]])
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


@given(st.binary(max_size=2000) | st.binary(min_size=128, max_size=200).map(lambda tail: image()[: OFFSET + 4] + tail))
@quick
def test_any_bytes_are_a_superblock_or_an_image_error(head: bytes) -> None:
    try:
        superblock = parse(head, 65536)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert superblock.size >= 0
