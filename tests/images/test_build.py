"""build: images out of directories and EROFS files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyerofs.erofs import chunk_index
from pyerofs.oci.platforms import Platform
from tests.support.images import EROFS, Images
from tests.support.needs import need_root
from tests.support.ordinary import check_layer, mounted, read_json
from tests.support.scene import Scene
from tests.support.skopeo import tags
from tests.support.trees import Tree, assert_same


@pytest.fixture(autouse=True)
def programs() -> None:
    need_root()


def test_a_directory(scene: Scene, tree: Tree) -> None:
    out = scene.directory / "out"
    done = scene.make("build", tree.root, f"oci:{out}:app")
    assert done.status == 0, done.err
    assert done.out == f"{tags(out)['app']}  oci:{out}:app\n"
    assert done.err.startswith(f"pyerofs: layer 1 of 1  {tree.root} -> sha256:")
    manifest = read_json(out, tags(out)["app"])
    (layer,) = manifest["layers"]
    path = out / "blobs" / layer["digest"].replace(":", "/")
    check_layer(path)
    with mounted([path], scene.directory / "native") as root:
        assert_same(tree.entries, root)
    config = read_json(out, manifest["config"]["digest"])
    host = Platform.host()
    assert (config["os"], config["architecture"], config["os.features"]) == (host.os, host.architecture, ["erofs"])
    assert config["rootfs"] == {"type": "layers", "diff_ids": [layer["digest"]]}
    assert config["history"] == [{"created_by": "pyerofs build tree"}]


def test_the_same_each_time(scene: Scene, tree: Tree) -> None:
    copy = scene.directory / "tree"
    subprocess.run(["cp", "-a", tree.root, copy], check=True)
    outs = [scene.make("build", "-q", at, f"oci:{scene.directory}/out:app").out for at in (tree.root, copy)]
    assert outs[0] == outs[1] != ""


def test_compressed(scene: Scene, tree: Tree, images: Images) -> None:
    """Read back through its index."""
    name = f"oci:{scene.directory}/out:app"
    done = scene.make("build", "-q", "--compress", "zstd:19", images.plain, name)
    assert done.status == 0, done.err
    read = scene.directory / "read"
    with read.open("wb") as out:
        options = f"oci.cache={scene.cache},oci.verify=require"
        with scene.start("read", "-o", options, name, stdout=out.fileno()) as process:
            assert process.wait(60) == 0
    assert read.read_bytes() == images.plain.read_bytes()


def test_files_and_directories(scene: Scene, images: Images) -> None:
    extra = scene.directory / "extra"
    extra.mkdir()
    (extra / "new").write_bytes(b"new")
    before = images.other.read_bytes()
    out = scene.directory / "out"
    done = scene.make(
        "build", "-q", "-o", "oci.platform=linux/arm/v7", images.other, extra, images.lz4, f"oci:{out}:app"
    )
    assert done.status == 0, done.err
    assert images.other.read_bytes() == before
    manifest = read_json(out, tags(out)["app"])
    assert [layer["mediaType"] for layer in manifest["layers"]] == [EROFS] * 3
    paths = [out / "blobs" / layer["digest"].replace(":", "/") for layer in manifest["layers"]]
    first, _ = map(int, manifest["layers"][0]["annotations"][chunk_index.RANGE].split(":"))
    assert paths[0].read_bytes()[:first] == before
    with mounted(paths, scene.directory / "native") as root:
        assert (root / "other").read_bytes() == b"another tree\n"
        assert (root / "new").read_bytes() == b"new"
        assert (root / "hello").exists()
    assert read_json(out, manifest["config"]["digest"])["variant"] == "v7"


def test_what_cannot_be_built(scene: Scene, images: Images) -> None:
    text = scene.directory / "text"
    text.write_text("no image\n" * 1000)
    cut = scene.directory / "cut"
    cut.write_bytes(images.plain.read_bytes()[:8192])
    spoiled = scene.directory / "spoiled"
    data = bytearray(images.plain.read_bytes())
    data[1024 + 64] ^= 1  # its name
    spoiled.write_bytes(data)
    out = f"oci:{scene.directory}/out:x"
    for source, status, error in (
        (text, 32, f"{text}: not an EROFS image"),
        (cut, 32, f"{cut}: the EROFS image is truncated"),
        (spoiled, 32, f"{spoiled}: the EROFS superblock is corrupt: its checksum is wrong"),
        (Path("/nowhere"), 1, "/nowhere is neither a directory nor an EROFS file"),
        (Path("/dev/null"), 1, "/dev/null is neither a directory nor an EROFS file"),
    ):
        done = scene.make("build", "-q", source, out)
        assert (done.status, error in done.error) == (status, True), done.err
    assert tags(scene.directory / "out") == {}
    assert "oci.layer" in scene.make("build", "-o", "oci.layer=1", cut, out).error


def test_nothing_of_a_directory_is_lost(scene: Scene) -> None:
    """Versions of mkfs.erofs left the first out, and cut the second off."""
    tree = scene.directory / "tree"
    (tree / "lost+found").mkdir(parents=True)
    (tree / ("n" * 255)).touch()
    out = scene.directory / "out"
    done = scene.make("build", "-q", tree, f"oci:{out}:x")
    assert done.status == 0, done.err
    (layer,) = read_json(out, tags(out)["x"])["layers"]
    with mounted([out / "blobs" / layer["digest"].replace(":", "/")], scene.directory / "native") as root:
        assert sorted(path.name for path in root.iterdir()) == ["lost+found", "n" * 255]
