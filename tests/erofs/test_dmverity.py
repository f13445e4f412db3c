"""dm-verity trees: by their annotations, by their superblocks, and made; veritysetup(8) has the last word."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from pyerofs.erofs import chunk_index, dmverity
from pyerofs.erofs.dmverity import HashTree, Table
from pyerofs.errors import ImageError
from pyerofs.kernel import dmverity as dmverity_device
from tests.support.images import Images
from tests.support.needs import need
from tests.support.ordinary import read_json
from tests.support.scene import Scene
from tests.support.skopeo import tags
from tests.support.veritytrees import add_tree, own_tree

ROOT = f"sha256:{'ab' * 32}"
ROOT_512 = f"sha512:{'ab' * 64}"


def annotated(offset: str | None = "8192", root: str | None = ROOT, block: str | None = None) -> dict[str, str]:
    values = {dmverity.HASH_OFFSET: offset, dmverity.ROOT_DIGEST: root, dmverity.BLOCK_SIZE: block}
    return {name: value for name, value in values.items() if value is not None}


# Annotations


@pytest.mark.parametrize(("found", "tree"), [
    (annotated(), HashTree(8192, 4096, ROOT)),
    (annotated(block="4096"), HashTree(8192, 4096, ROOT)),
    (annotated("1024", ROOT_512, "512"), HashTree(1024, 512, ROOT_512)),
    ({dmverity.BLOCK_SIZE: "nonsense", "org.erofs.dmverity.future": "x"}, None),
    ({}, None),
])  # fmt: skip
def test_annotations(found: dict[str, str], tree: HashTree | None) -> None:
    assert dmverity.find(found, 4096) == tree


@pytest.mark.parametrize(("found", "error"), [
    (annotated(offset=None), "root_digest, but not org.erofs.dmverity.hash_offset"),
    (annotated(root=None), "hash_offset, but not org.erofs.dmverity.root_digest"),
    (annotated("8191"), "hash_offset is 8191, not a multiple of the block size 4096"),
    (annotated("0"), "hash_offset is 0"),
    (annotated("-4096"), "hash_offset is not a number: '-4096'"),
    (annotated("4 096"), "is not a number"),
    (annotated("\u0664096"), "is not a number"),
    (annotated("9" * 500), "is not a number"),
    (annotated(root="ab" * 32), "root_digest is not a sha256 or sha512 digest"),
    (annotated(root=f"md5:{'ab' * 16}"), "root_digest is not a sha256"),
    (annotated(root=ROOT.upper()), "root_digest is not a sha256"),
    (annotated(root="x\n" * 300), "root_digest is not a sha256"),
    (annotated(block="3000"), "block_size is 3000: it must be a power of two"),
    (annotated(block="256"), "it must be a power of two, 512 or more"),
    (annotated(block="0"), "it must be a power of two"),
    (annotated(block="4k"), "block_size is not a number: '4k'"),
    (annotated(block="8192"), "blocks of 8192 bytes, more than this kernel's pages of 4096"),
])  # fmt: skip
def test_bad_annotations(found: dict[str, str], error: str) -> None:
    with pytest.raises(ImageError) as caught:
        dmverity.find(found, 4096)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_what_the_option_chooses() -> None:
    said: list[str] = []
    assert dmverity.choose(annotated(), "require", "app: layer 1", said.append) == HashTree(8192, 4096, ROOT)
    assert dmverity.choose({}, "auto", "app: layer 1", said.append) is None
    assert said == ["app: layer 1 has no dm-verity tree, and is not verified by the kernel"]
    for found, how, error in (
        ({}, "require", "app: layer 1 has no dm-verity tree"),
        (annotated("1"), "auto", "app: layer 1: the annotation"),
    ):
        with pytest.raises(ImageError) as caught:
            dmverity.choose(found, how, "app: layer 1", said.append)  # type: ignore[arg-type]  # a fake
        assert str(caught.value).startswith(error)


# The tree itself


def superblock(**changes: object) -> bytes:
    """One for 3 blocks."""
    values: dict[str, object] = {
        "magic": b"verity\0\0",
        "version": 1, "type": 1, "uuid": b"", "algorithm": b"sha256", "data": 4096, "hash": 4096,
        "count": 3, "size": 2, "salt": b"\x01\x02\x03",
    }  # fmt: skip
    return struct.pack("<8sII16s32sIIQH6x256s168x", *(values | changes).values())


THREE = HashTree(3 * 4096, 4096, ROOT)


def test_with_and_without_a_superblock() -> None:
    assert dmverity.table(THREE, superblock(), 5 * 4096) == Table(3, 4096, 4 * 4096, "sha256", "0102", "ab" * 32)
    assert dmverity.table(THREE, bytes(512), 4 * 4096) == Table(3, 4096, 3 * 4096, "sha256", "", "ab" * 32)


@pytest.mark.parametrize(("head", "size", "error"), [
    (superblock(version=2), 1 << 20, "of version 2, type 1, which is not known"),
    (superblock(type=0), 1 << 20, "type 0"),
    (superblock(algorithm=b"crc32"), 1 << 20, "its superblock says 'crc32', and the root digest is sha256"),
    (superblock(algorithm=b"\xff\n"), 1 << 20, r"its superblock says '\xff\n'"),
    (superblock(data=1024), 1 << 20, "blocks of 1024 and 4096 bytes instead of 4096"),
    (superblock(hash=1024), 1 << 20, "blocks of 4096 and 1024 bytes instead of 4096"),
    (superblock(count=2), 1 << 20, "has 2 blocks of data instead of 3"),
    (superblock(count=1 << 63), 1 << 20, "blocks of data instead of 3"),
    (superblock(size=257), 1 << 20, "a salt of 257 bytes"),
    (superblock(), 5 * 4096 - 1, "it ends at 20480, and the layer has 20479 bytes of image data"),
    (bytes(512), 4 * 4096 - 1, "it ends at 16384, and the layer has 16383 bytes"),
])  # fmt: skip
def test_a_bad_tree(head: bytes, size: int, error: str) -> None:
    with pytest.raises(ImageError) as caught:
        dmverity.table(THREE, head, size)
    assert error in str(caught.value) and "\n" not in str(caught.value)


def test_any_bytes_are_a_table_or_an_image_error() -> None:
    chance = random.Random(1)
    whole = superblock()
    for _ in range(2000):
        head = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            head[chance.randrange(8, 512)] = chance.randrange(256)
        try:
            found = dmverity.table(THREE, bytes(head), 5 * 4096)
        except ImageError:
            continue
        assert found._replace(salt="") == Table(3, 4096, 4 * 4096, "sha256", "", "ab" * 32)


@pytest.mark.parametrize(("options", "block", "has_superblock"), [
    ([], 4096, True), (["--salt=-"], 4096, False), (["--salt=0badcafe"], 1024, True), (["--hash=sha512"], 4096, True),
])  # fmt: skip
@pytest.mark.parametrize("blocks", [1, 2, 129, 64 * 64 + 1])
def test_veritysetup_agrees_with_what_we_tell_the_kernel(
    tmp_path: Path, options: list[str], block: int, has_superblock: bool, blocks: int
) -> None:
    """`open` and `verify` take the same options, and `verify` needs no kernel."""
    image = make_file(tmp_path, blocks * block)
    tree = dmverity.find(add_tree(image, *options, block=block, superblock=has_superblock), 4096)
    assert tree is not None and tree.offset == blocks * block
    # A tree of a single block is nothing but its superblock, or nothing at all.
    head = image.read_bytes()[tree.offset : tree.offset + 512].ljust(512, b"\0")
    table = dmverity.table(tree, head, image.stat().st_size)
    assert verifies(table, image)
    with pytest.raises(ImageError):
        dmverity.table(tree, head, image.stat().st_size - 1 if blocks > 1 else table.start - 1)
    damage(image, tree.offset - 1)
    assert not verifies(table, image)


def make_file(directory: Path, size: int) -> Path:
    path = directory / "image"
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def damage(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def verifies(table: Table, path: Path) -> bool:
    _, *options, data, name, hashes, root = dmverity_device.open_arguments(table, str(path), "name")
    assert name == "name"
    command = [need("veritysetup", "cryptsetup-bin"), "verify", *options, data, hashes, root]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("blocks", [1, 2, 128, 129, 128 * 128 + 1])
def test_ours_is_veritysetups(tmp_path: Path, blocks: int) -> None:
    image = make_file(tmp_path, blocks * 4096)
    theirs = tmp_path / "theirs"
    theirs.write_bytes(image.read_bytes())
    found = own_tree(image)
    uuid = found[dmverity.ROOT_DIGEST].removeprefix("sha256:")[:32]
    uuid = "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]))
    assert add_tree(theirs, "--salt=-", f"--uuid={uuid}") == found
    # veritysetup ends the file with the superblock where there is no tree behind it.
    assert image.read_bytes().rstrip(b"\0") == theirs.read_bytes().rstrip(b"\0")
    assert image.stat().st_size >= theirs.stat().st_size
    tree = dmverity.find(found, 4096)
    assert tree is not None
    with image.open("rb") as file:
        file.seek(tree.offset)
        assert verifies(dmverity.table(tree, file.read(512), image.stat().st_size), image)


def test_no_half_blocks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole block"):
        own_tree(make_file(tmp_path, 4097))


# Layers that we make


def test_build(scene: Scene, images: Images) -> None:
    out = scene.directory / "out"
    done = [scene.make("build", "-q", "--verity", images.other, f"oci:{out}:{tag}") for tag in ("one", "two")]
    assert [each.status for each in done] == [0, 0], done
    assert tags(out)["one"] == tags(out)["two"]
    (layer,) = read_json(out, tags(out)["one"])["layers"]
    path = out / "blobs" / layer["digest"].replace(":", "/")
    data = path.read_bytes()
    size = images.other.stat().st_size
    assert data[:size] == images.other.read_bytes()
    tree = dmverity.find(layer["annotations"], 4096)
    place = chunk_index.locate(layer["annotations"], len(data), compressed=False)
    assert tree is not None and tree.offset == size and place is not None
    index = chunk_index.parse(data[place.offset : place.end], place)
    assert index is not None and index.size == place.offset  # the tree is verified by it too
    assert verifies(dmverity.table(tree, data[size : size + 512], index.size), path)
    damage(path, 100)
    assert not verifies(dmverity.table(tree, data[size : size + 512], index.size), path)


def test_what_cannot_have_a_tree(scene: Scene, images: Images) -> None:
    data = bytearray(images.other.read_bytes())
    data[1024 + 12] = 9
    data[1024 + 8] &= ~1  # without a checksum, as old images are
    image = scene.directory / "image"
    image.write_bytes(data)
    done = scene.make("build", "-q", "--verity", image, f"oci:{scene.directory}/out:x")
    assert done.status == 32 and "blocks of 512 bytes: the kernel cannot mount it by dm-verity" in done.error
    assert scene.make("build", "-q", image, f"oci:{scene.directory}/out:x").status == 0


def test_an_odd_size_is_filled_up(scene: Scene, images: Images) -> None:
    image = scene.directory / "image"
    image.write_bytes(images.other.read_bytes() + b"\1" * 1000)
    out = scene.directory / "out"
    assert scene.make("build", "-q", "--verity", image, f"oci:{out}:x").status == 0
    (layer,) = read_json(out, tags(out)["x"])["layers"]
    tree = dmverity.find(layer["annotations"], 4096)
    assert tree is not None and tree.offset == images.other.stat().st_size + 4096
    data = (out / "blobs" / layer["digest"].replace(":", "/")).read_bytes()
    assert data[: tree.offset] == image.read_bytes() + bytes(3096)
