"""Native images in OCI layout directories: mounted, read, served and inspected like those at a registry."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import pyerofs
from pyerofs.cli import main
from pyerofs.config.options import ReadOptions
from pyerofs.context import NOBODY
from pyerofs.errors import CorruptError, ImageError, RegistryError, UsageError
from pyerofs.oci.location import Location
from pyerofs.source.blobs import FileBlob
from pyerofs.source.open import open_layer, reopen_layers
from tests.support.needs import need, need_root
from tests.support.ordinary import Layout, file, tars
from tests.support.scene import Scene, by_pyerofs
from tests.support.skopeo import tags
from tests.support.tarballs import archive
from tests.support.trees import survey

FUSE = "erofs.fuse"
CONTENT = b"".join(b"%015d\n" % number for number in range(51_200))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """app: five layers, one: one; all with chunk indexes."""
    need_root()
    path = tmp_path_factory.mktemp("native") / "layout"
    ordinary = Layout(tmp_path_factory.mktemp("ordinary") / "layout")
    images = {"app": tars(), "one": [archive(file("numbers", CONTENT))]}
    for tag, layers in images.items():
        source = ordinary.tag(ordinary.image(layers), tag)
        assert main.main(["convert", "-q", "-o", f"oci.cache={path.parent}/cache", source, f"oci:{path}:{tag}"]) == 0
    return path


@pytest.fixture
def native(pristine: Path, scene: Scene) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(pristine, scene.directory / "native"))


def blob_of(native: Path, tag: str = "one") -> Path:
    """The blob of the image's last layer."""
    manifest = json.loads((native / "blobs" / tags(native)[tag].replace(":", "/")).read_bytes())
    return native / "blobs" / str(manifest["layers"][-1]["digest"]).replace(":", "/")


def test_the_whole_tree(scene: Scene, native: Path) -> None:
    need("nbdfuse", "libnbd-bin")
    done = scene.mount_image("oci:native:app", "oci.verify=require", fstype=FUSE)
    assert "converting" not in done.err
    found = survey(scene.mnt)
    assert {"gone/again", "opaque/new", "moved", "becomes-dir/in", "usr/lib/two", "d/c"} <= set(found)
    assert not {"d/a", "gone/x", "to-move", "page1"} & set(found)
    by_pyerofs(scene)
    scene.mount_image("oci:native:app", "oci=0", fstype=FUSE)  # the base alone
    assert (scene.mnt / "d" / "a").read_bytes() == b"a"
    by_pyerofs(scene)


def test_read_serve_and_inspect(scene: Scene, native: Path) -> None:
    need("nbdcopy", "libnbd-bin")
    cache = f"oci.cache={scene.cache}"
    layer = blob_of(native).read_bytes()
    with (scene.directory / "read").open("wb") as out:
        assert scene.start("read", "-o", cache, "oci:native:one", stdout=out.fileno()).wait(60) == 0
    image = (scene.directory / "read").read_bytes()
    assert CONTENT in image and layer.startswith(image)
    server = scene.start("serve", "--unix", scene.directory / "sock", "-o", cache, "oci:native:one")
    assert server.stdout is not None and server.stdout.readline().startswith("ready: ")
    copied = scene.directory / "copied"
    subprocess.run(["nbdcopy", f"nbd+unix:///?socket={scene.directory}/sock", copied], check=True)
    assert copied.read_bytes() == image
    server.terminate()
    server.communicate(timeout=30)
    found = json.loads(scene.run("inspect", "--json", "-o", cache, "oci:native:one").out)
    assert found["reference"] == f"oci:{native}:one"
    assert found["mount"]["layers"] == [0] and found["mount"]["verified"]


def test_from_python(native: Path, scene: Scene) -> None:
    with pyerofs.open_blob(f"oci:{native}:one", f"oci.cache={scene.cache}") as blob:
        assert CONTENT in blob.readall()
    with pyerofs.open_blob(f"oci:{native}:one", f"oci.cache={scene.cache}") as blob:  # from the cache
        os.unlink(blob_of(native))
        assert CONTENT in blob.readall()


@pytest.mark.parametrize("spoil", ["changed", "cut", "gone"])
def test_a_spoiled_blob_gives_no_wrong_byte(native: Path, scene: Scene, spoil: str) -> None:
    path = blob_of(native)
    data = bytearray(path.read_bytes())
    at = data.index(CONTENT) + 200_000
    with pyerofs.open_blob(f"oci:{native}:one", f"oci.cache={scene.cache}") as blob:
        assert blob.pread(4096, 0) == bytes(data[:4096])
        if spoil == "gone":
            path.unlink()
        else:
            data[at] ^= 1
            path.write_bytes(data if spoil == "changed" else data[:-100])
        with pytest.raises(RegistryError, match=path.name if spoil != "changed" else "chunk"):
            blob.pread(10, at)


def test_a_layer_is_opened_again_from_its_record(native: Path, scene: Scene) -> None:
    options = ReadOptions(cache=str(scene.cache))
    name = f"oci:{native}:one"
    first = open_layer(Location.parse(name), options)
    [open_] = reopen_layers(Location.parse(name), [(first.origin, first.size)], options)
    again = open_(NOBODY)
    assert (again.origin, again.size, again.name) == (first.origin, first.size, name)
    first.close()
    again.close()


@pytest.mark.parametrize(("source", "error", "text"), [
    ("oci:{0}", ImageError, "does not say which of several images is meant"),
    ("oci:{0}:none", ImageError, "has no image with the name 'none'"),
    ("oci:{0}/blobs", UsageError, "is not an OCI layout directory"),
    ("oci:", UsageError, "names no layout directory: write oci:DIR"),
    ("oci:{0}:app", ImageError, "choose a layer with -o oci.layer=N"),
    ("docker-archive:{0}/index.json", ImageError, "index.json"),
    ("docker-archive:{0}/none", UsageError, "cannot open"),
])  # fmt: skip
def test_what_cannot_be_opened(native: Path, source: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        pyerofs.open_blob(source.format(native))


def test_an_ordinary_image_cannot_be_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    with pytest.raises(ImageError, match=r"no EROFS layer.*`pyerofs convert` makes an EROFS image of it"):
        pyerofs.open_blob(layout.tag(layout.image([archive(file("a"))]), "app"))


# A blob in a file


@pytest.fixture
def blob(tmp_path: Path) -> FileBlob:
    data = bytes(range(256)) * 10_000
    (tmp_path / "blob").write_bytes(data)
    return FileBlob(str(tmp_path / "blob"), f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


def read(blob: FileBlob, offset: int, length: int, limit: int = 1 << 40) -> bytes:
    found = bytearray()

    def sink(at: int, piece: bytes) -> bool:
        assert at == offset + len(found)
        found.extend(piece)
        return len(found) < limit

    assert blob.read_range(offset, length, sink) == len(found)
    return bytes(found)


def test_ranges(blob: FileBlob) -> None:
    data = bytes(range(256)) * 10_000
    for offset, length in ((0, len(data)), (5, 1), (len(data) - 3, 3), (1000, 2 << 20)):
        assert read(blob, offset, length) == data[offset : offset + length]
    assert read(blob, 0, len(data), limit=1) == data[: 1 << 20]  # the sink has had enough
    for offset, length in ((-1, 1), (0, 0), (len(data), 1)):
        with pytest.raises(ValueError, match="within"):
            read(blob, offset, length)
    assert blob.read_range(0, 10, lambda at, piece: True, cancel=lambda: True) == 0


def test_a_file_of_another_size(blob: FileBlob, tmp_path: Path) -> None:
    os.truncate(tmp_path / "blob", 100)
    with pytest.raises(CorruptError, match="has 100 bytes instead of 2560000"):
        read(blob, 0, 10)
