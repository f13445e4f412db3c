"""docker save's archives: which image is meant, where its files are, and archives that are none."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from images import digest_of
from ordinary import Member, file, link, symlink
from tarballs import archive

from pyerofs.dockerarchive import ArchiveOrigin
from pyerofs.errors import ImageError, PyerofsError, UsageError
from pyerofs.manifest import Manifest, parse

CONFIG, LAYER = b'{"os":"linux"}', b"a layer" * 5000
IMAGE = {"Config": "c.json", "RepoTags": ["org/app:1"], "Layers": ["l/layer.tar"]}
FILES = [file("c.json", CONFIG), file("l/layer.tar", LAYER)]


def write(path: Path, manifest: Any, *members: Member) -> str:
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    path.write_bytes(archive(*members, file("manifest.json", text), kind=tarfile.GNU_FORMAT))
    return str(path)


def layers(path: str, reference: str | None = None) -> list[bytes]:
    """The content of config and layers."""
    origin = ArchiveOrigin(path, reference)
    try:
        found = parse(origin.root().body)
        assert isinstance(found, Manifest)
        assert found.config
        contents = []
        for entry in (found.config, *found.layers):
            with origin.blob(entry, None, lambda done: None) as name:
                contents.append(Path(name).read_bytes())
            assert not Path(name).exists()
            assert (entry.digest, entry.size) == (digest_of(contents[-1]), len(contents[-1]))
        return contents
    finally:
        origin.close()


def test_an_image(tmp_path: Path) -> None:
    assert layers(write(tmp_path / "a", [IMAGE], *FILES)) == [CONFIG, LAYER]


def test_links_between_layers(tmp_path: Path) -> None:
    image = {**IMAGE, "Layers": ["l/layer.tar", "m/layer.tar", "./n.tar"]}
    members = [*FILES, symlink("m/layer.tar", "../l/layer.tar"), link("n.tar", "l/layer.tar")]
    assert layers(write(tmp_path / "a", [image], *members)) == [CONFIG, LAYER, LAYER, LAYER]


def test_compressed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, [IMAGE], *FILES)
    path.write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
    assert layers(str(path)) == [CONFIG, LAYER]


@pytest.mark.parametrize("reference", ["org/app:1", "docker.io/org/app:1"])
def test_one_of_several(tmp_path: Path, reference: str) -> None:
    other = {**IMAGE, "RepoTags": ["org/app:2", "org/app:latest"], "Config": "l/layer.tar"}
    path = write(tmp_path / "a", [IMAGE, other], *FILES)
    assert layers(path, reference) == [CONFIG, LAYER]
    assert layers(path, "org/app") == [LAYER, LAYER]
    for wrong in (None, "org/other"):
        with pytest.raises(ImageError, match="it has org/app:1, org/app:2, org/app:latest: say which one"):
            layers(path, wrong)


@pytest.mark.parametrize(("manifest", "error"), [
    (b"{", "is not JSON"), (b"[" * 100_000, "is not JSON"), ({}, "no list of images"), ([], "no list of images"),
    ([1], "no list of images"), ([{}], "names no files"), ([{"Config": "c.json"}], "no list of layers"),
    ([{"Config": "none"}], "no file 'none': is it from docker save?"),
    ([{"Config": "../../etc/passwd", "Layers": []}], "no file"), ([{**IMAGE, "Layers": [5]}], "names no files"),
    ([{**IMAGE, "RepoTags": None}, {**IMAGE, "RepoTags": [4]}], "images without a name: say which"),
    (b" " * (5 << 20), "at most"),
])  # fmt: skip
def test_unsound(tmp_path: Path, manifest: Any, error: str) -> None:
    path = write(tmp_path / "a", manifest, *FILES)
    with pytest.raises(ImageError, match=error) as caught:
        ArchiveOrigin(path, None)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open"):
        ArchiveOrigin(str(tmp_path / "none"), None)
    with pytest.raises(PyerofsError, match="cannot"):
        ArchiveOrigin(str(tmp_path), None)
