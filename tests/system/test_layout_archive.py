"""Layouts in tar archives, as skopeo and podman write them: sources like the directory that they are made of."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import pyerofs
from pyerofs.cli import main
from pyerofs.config.options import ReadOptions
from pyerofs.context import NOBODY
from pyerofs.errors import ImageError, PyerofsError, RegistryError, UsageError
from pyerofs.oci.location import Location
from pyerofs.source.layout_archive import LayoutArchive
from pyerofs.source.open import open_layer, reopen_layers
from tests.support import skopeo
from tests.support.needs import need_root
from tests.support.ordinary import Layout, file, link, tars
from tests.support.ordinaryscene import FUSE, need_to_mount
from tests.support.scene import Scene, by_pyerofs
from tests.support.skopeo import tags
from tests.support.tarballs import archive
from tests.support.trees import assert_same, survey

CONTENT = b"".join(b"%015d\n" % number for number in range(51_200))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with app, of five layers, and one."""
    need_root()
    path = tmp_path_factory.mktemp("native") / "layout"
    ordinary = Layout(tmp_path_factory.mktemp("ordinary") / "layout")
    for tag, layers in {"app": tars(), "one": [archive(file("numbers", CONTENT))]}.items():
        source = ordinary.tag(ordinary.image(layers), tag)
        assert main.main(["convert", "-q", "-o", f"oci.cache={path.parent}/cache", source, f"oci:{path}:{tag}"]) == 0
    return path


@pytest.fixture(scope="module")
def saved(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole layout by GNU tar."""
    path = tmp_path_factory.mktemp("saved") / "images.tar"
    subprocess.run(["tar", "-C", native, "-cf", path, "."], check=True)
    return path


def test_a_mount_shows_what_the_directory_shows(scene: Scene, native: Path, saved: Path) -> None:
    need_to_mount()
    scene.mount_image(f"oci:{native}:app", fstype=FUSE)
    expected = survey(scene.mnt)
    by_pyerofs(scene)
    shutil.rmtree(scene.cache)
    shown = scene.mount_image(f"oci-archive:{saved}:app", "oci.verify=require", fstype=FUSE)
    assert "converting" not in shown.err
    assert_same(expected, scene.mnt)
    by_pyerofs(scene)


def test_read_and_inspect(scene: Scene, saved: Path) -> None:
    with pyerofs.open_blob(f"oci-archive:{saved}:one", f"oci.cache={scene.cache}") as blob:
        assert CONTENT in blob.readall()
    found = json.loads(scene.run("inspect", "--json", "-o", f"oci.cache={scene.cache}", f"oci-archive:{saved}:one").out)
    assert found["reference"] == f"oci-archive:{saved}:one"
    assert found["mount"]["layers"] == [0] and found["mount"]["verified"]


def test_a_layer_is_opened_again_from_its_record(scene: Scene, saved: Path) -> None:
    options = ReadOptions(cache=str(scene.cache))
    name = f"oci-archive:{saved}:one"
    first = open_layer(Location.parse(name), options)
    [open_] = reopen_layers(Location.parse(name), [(first.origin, first.size)], options)
    again = open_(NOBODY)
    assert (again.origin, again.size, again.name) == (first.origin, first.size, name)
    first.close()
    again.close()


def test_copies_are_the_same(scene: Scene, native: Path, saved: Path) -> None:
    out = scene.directory / "out"
    for tag in ("app", "one"):
        assert scene.run("pull", "-q", f"oci-archive:{saved}:{tag}", f"oci:{out}:{tag}").status == 0
    assert tags(out) == tags(native)
    assert skopeo.blobs(out) == skopeo.blobs(native)


@pytest.mark.parametrize("name", ["docker.io/library/bb:latest", "bb", "@0", None])
def test_what_skopeo_writes(scene: Scene, native: Path, name: str | None) -> None:
    tar = scene.directory / "bb.tar"
    skopeo.copy(f"oci:{native}:one", f"oci-archive:{tar}:docker.io/library/bb:latest")
    out = scene.directory / "out"
    done = scene.run("pull", "-q", f"oci-archive:{tar}{f':{name}' if name else ''}", f"oci:{out}:x")
    assert (done.status, done.out.split()[0]) == (0, tags(native)["one"])


def test_compressed_and_through_a_pipe(scene: Scene, native: Path, saved: Path) -> None:
    packed = scene.directory / "images.tar.gz"
    packed.write_bytes(gzip.compress(saved.read_bytes(), 1))
    out = scene.directory / "out"
    assert scene.run("pull", "-q", f"oci-archive:{packed}:one", f"oci:{out}:a").status == 0
    for name in ("-", "/dev/stdin"):
        command = scene.argv("pull", "-q", f"oci-archive:{name}:one", f"oci:{out}:b")
        with saved.open("rb") as content:
            cat = subprocess.Popen(["cat"], stdin=content, stdout=subprocess.PIPE)
            done = subprocess.run(command, stdin=cat.stdout, env=scene.environment, capture_output=True, text=True)
            assert cat.stdout is not None
            cat.stdout.close()
            assert (cat.wait(), done.returncode) == (0, 0), done.stderr
    assert set(tags(out).values()) == {tags(native)["one"]}
    with pytest.raises(UsageError, match=r"cannot be read in place, since the archive is compressed or a pipe"):
        pyerofs.open_blob(f"oci-archive:{packed}:one", f"oci.cache={scene.cache}")
    for kind in ("oci-archive", "docker-archive"):
        with pytest.raises(UsageError, match=f"{kind}:-: what comes through a pipe can be read only once"):
            pyerofs.open_blob(f"{kind}:-", f"oci.cache={scene.cache}")


def test_an_ordinary_image_is_mounted_by_converting_it(scene: Scene) -> None:
    need_to_mount()
    layout = Layout(scene.directory / "layout")
    name = layout.tag(layout.image([archive(file("a", b"x"))]), "app")
    tar = scene.directory / "app.tar"
    skopeo.copy(name, f"oci-archive:{tar}:app")
    scene.mount_image(f"oci-archive:{tar}:app", fstype=FUSE)
    assert (scene.mnt / "a").read_bytes() == b"x"
    by_pyerofs(scene)


def test_a_file_that_changes_gives_no_wrong_byte(scene: Scene, saved: Path) -> None:
    with pyerofs.open_blob(f"oci-archive:{saved}:one", f"oci.cache={scene.directory}/other") as blob:
        image = blob.readall()
    where = image.index(CONTENT) + 200_000
    tar = scene.directory / "copy.tar"
    data = bytearray(saved.read_bytes())
    at = data.index(image) + where
    tar.write_bytes(data)
    with pyerofs.open_blob(f"oci-archive:{tar}:one", f"oci.cache={scene.cache}") as blob:
        data[at] ^= 1
        tar.write_bytes(data)
        with pytest.raises(RegistryError, match="chunk"):
            blob.pread(10, where)
        tar.write_bytes(data[:-512])
        with pytest.raises(RegistryError, match=r"copy\.tar has \d+ bytes instead of"):
            blob.pread(10, where + 400_000)


def layout_tar(path: Path, left_out: str = "", files: Mapping[str, bytes] | None = None) -> Path:
    """An archive of a layout without images, in which these files are others."""
    made = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b'{"manifests":[]}'}
    made |= files or {}
    path.write_bytes(archive(*(file(name, data) for name, data in made.items() if name != left_out)))
    return path


@pytest.mark.parametrize(("path", "error"), [
    (lambda path: layout_tar(path), "has no image"),
    (lambda path: layout_tar(path, left_out="oci-layout"), "it has no file 'oci-layout'"),
    (lambda path: layout_tar(path, left_out="index.json"), "it has no file 'index.json'"),
    (lambda path: layout_tar(path, files={"oci-layout": b"{"}), "unknown imageLayoutVersion"),
    (lambda path: layout_tar(path, files={"oci-layout": b" " * 5000}), "at most 4096 are read"),
    (lambda path: layout_tar(path, files={"index.json": b"no"}), "the manifest is not JSON"),
    (lambda path: layout_tar(path, files={"index.json": b'{"layers":[]}'}), "it is not an index"),
], ids=range(7))  # fmt: skip
def test_what_is_no_layout(tmp_path: Path, path: Callable[[Path], Path], error: str) -> None:
    made = path(tmp_path / "a.tar")
    with (
        pytest.raises(PyerofsError, match=f"{made}.*{error}"),
        contextlib.closing(LayoutArchive(Location("oci-archive", str(made)))) as archive,
    ):
        archive.root()


def test_a_blob_that_is_another_one(scene: Scene, native: Path, tmp_path: Path) -> None:
    """It is seen while it is copied, and nothing of it is kept."""
    tar = tmp_path / "a.tar"
    digest = tags(native)["one"]
    layer = json.loads((native / "blobs" / digest.replace(":", "/")).read_bytes())["layers"][0]["digest"]
    with tarfile.open(tar, "w") as made:
        for path in sorted(native.rglob("*")):
            if path.is_file() and path.name != layer.partition(":")[2]:
                made.add(path, path.relative_to(native))
        wrong = tmp_path / "wrong"
        wrong.write_bytes(b"another one")
        made.add(wrong, f"blobs/{layer.replace(':', '/')}")
    done = scene.run("pull", "-q", f"oci-archive:{tar}:one", f"oci:{scene.directory}/out:x")
    assert done.status == 32 and "is corrupt: its digest is not the one in its name" in done.error
    with pytest.raises(ImageError, match=r"has 11 bytes instead of"):
        pyerofs.open_blob(f"oci-archive:{tar}:one", f"oci.cache={scene.cache}")


def test_blobs_may_be_links(scene: Scene, native: Path, tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    members = [(path.relative_to(native), path.read_bytes()) for path in sorted(native.rglob("*")) if path.is_file()]
    kept = [file(f"x/{name}", data) for name, data in members]
    tar.write_bytes(archive(*kept, *(link(str(name), f"x/{name}") for name, _ in members)))
    with pyerofs.open_blob(f"oci-archive:{tar}:one", f"oci.cache={scene.cache}") as blob:
        assert CONTENT in blob.readall()


def test_an_archive_is_no_target(scene: Scene, native: Path) -> None:
    done = scene.run("push", f"oci:{native}:one", f"oci-archive:{scene.directory}/out.tar")
    assert done.status == 1 and "an archive is read only; write an image to a registry or to oci:DIR" in done.error
