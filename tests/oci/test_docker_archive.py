"""docker save's archives: which image is meant, where its files are, and archives that are none."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pyerofs.errors import ImageError, PyerofsError, UsageError
from pyerofs.oci.docker_archive import ArchiveReader
from pyerofs.oci.location import Location
from pyerofs.oci.manifest import Manifest, parse
from tests.support.images import digest_of
from tests.support.ordinary import Member, file, link, symlink
from tests.support.tarballs import archive

CONFIG, LAYER = b'{"os":"linux"}', b"a layer" * 5000
IMAGE = {"Config": "c.json", "RepoTags": ["org/app:1"], "Layers": ["l/layer.tar"]}
FILES = [file("c.json", CONFIG), file("l/layer.tar", LAYER)]


def write(path: Path, manifest: Any, *members: Member) -> str:
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    path.write_bytes(archive(*members, file("manifest.json", text), kind=tarfile.GNU_FORMAT))
    return str(path)


def opened(path: str, reference: str | None = None) -> ArchiveReader:
    return ArchiveReader(Location("docker-archive", path, reference))


def layers(path: str, reference: str | None = None) -> list[bytes]:
    """The content of config and layers."""
    origin = opened(path, reference)
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
    ([{**IMAGE, "RepoTags": None}, {**IMAGE, "RepoTags": [4]}], r"it has @0 \(config .*, @1 \(config .*: say which"),
    (b" " * (5 << 20), "at most"),
])  # fmt: skip
def test_unsound(tmp_path: Path, manifest: Any, error: str) -> None:
    path = write(tmp_path / "a", manifest, *FILES)
    with pytest.raises(ImageError, match=error) as caught:
        opened(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open"):
        opened(str(tmp_path / "none"))
    with pytest.raises(PyerofsError, match="is not a regular file"):
        opened(str(tmp_path))


def test_untagged_images_are_told_by_number_or_config(tmp_path: Path) -> None:
    images = [{**IMAGE, "RepoTags": None}, {**IMAGE, "RepoTags": [], "Config": "l/layer.tar"}]
    path = write(tmp_path / "a", images, *FILES)
    for name in ("@0", digest_of(CONFIG), f"@{digest_of(CONFIG)}"):
        assert layers(path, name) == [CONFIG, LAYER]
    for name in ("@1", digest_of(LAYER)):
        assert layers(path, name) == [LAYER, LAYER]
    for nameless in (None, "@2", digest_of(b"")):
        with pytest.raises(ImageError, match=rf"it has @0 \(config {digest_of(CONFIG)}\), @1 \(config"):
            layers(path, nameless)


def test_a_message_lists_the_first_names_alone(tmp_path: Path) -> None:
    images = [{**IMAGE, "RepoTags": [f"org/app:{number}"]} for number in range(70)]
    with pytest.raises(ImageError, match=r"it has org/app:0, .*org/app:15, and 54 more: say which"):
        layers(write(tmp_path / "a", images, *FILES))


@pytest.mark.parametrize("steps", [40, 41])
def test_links_have_up_to_forty_steps(tmp_path: Path, steps: int) -> None:
    image = {**IMAGE, "Layers": ["0"]}
    links = [symlink(str(number), str(number + 1)) for number in range(steps - 1)]
    path = write(tmp_path / "a", [image], *FILES, *links, symlink(str(steps - 1), "l/layer.tar"))
    if steps == 40:
        assert layers(path) == [CONFIG, LAYER]
    else:
        with pytest.raises(ImageError, match="its file '0' is a link of more than 40 steps"):
            layers(path)


def test_a_link_that_leads_to_itself(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a link of more than 40 steps"):
        layers(write(tmp_path / "a", [{**IMAGE, "Layers": ["s"]}], *FILES, symlink("s", "s")))


def test_a_later_file_takes_the_place_of_a_link(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [{**IMAGE, "Layers": ["s"]}], *FILES, symlink("s", "none"), file("s", LAYER))
    assert layers(path) == [CONFIG, LAYER]


def test_an_archive_that_is_cut_short(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a", [IMAGE], *FILES))
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(ImageError, match="an end within an entry"):
        layers(str(path))


def test_a_pipe(tmp_path: Path) -> None:
    """What `<(docker save app)` is; a pipe with a name is not waited for."""
    data = Path(write(tmp_path / "a", [IMAGE], *FILES)).read_bytes()
    ours, theirs = os.pipe()

    def give() -> None:
        with os.fdopen(theirs, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=give)
    writer.start()
    with os.fdopen(ours, "rb"):
        assert layers(f"/dev/fd/{ours}") == [CONFIG, LAYER]
    writer.join()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match=r"fifo is not a regular file; give it to standard input: `< "):
        layers(str(tmp_path / "fifo"))
