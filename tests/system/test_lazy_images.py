"""Images with tables of contents, mounted lazily (-t erofs.fuse): each file as umoci unpacks the ordinary image."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import skopeo
from tests.support.fakeregistry import Exchange, FakeRegistry, honest, whole
from tests.support.lazyimages import LazyLayer, chunked_layer, lazy_image, stargz_layer
from tests.support.lazyscene import BALLAST, TAGS, LazyScene, lazy_scene
from tests.support.ordinary import Layout, file
from tests.support.ordinaryscene import FUSE, need_to_mount
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene, by_pyerofs
from tests.support.tarballs import archive
from tests.support.tocs import read
from tests.support.trees import assert_same


@pytest.fixture(autouse=True)
def needs() -> None:
    need_to_mount()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LazyScene:
    return lazy_scene(tmp_path_factory.mktemp("lazy"))


@pytest.mark.parametrize("tag", TAGS)
def test_the_whole_tree(scene: Scene, registry: LoggingRegistry, images: LazyScene, tag: str) -> None:
    image = f"{registry.host}/lazy/{tag}:1"
    skopeo.copy(images.names[tag], f"docker://{image}")
    before = len(registry.requests())
    done = scene.mount_image(image, fstype=FUSE)
    assert ("converting" in done.err) == (tag == "mixed"), done.err
    assert "read whole" not in done.err
    assert_same(images.expected(tag), scene.mnt)
    assert len(registry.requests()) > before
    by_pyerofs(scene)
    before = len(registry.requests())
    scene.mount_image(image, fstype=FUSE)
    assert_same(images.expected(tag), scene.mnt)
    assert len(registry.requests()) == before  # all of it is in the cache by now
    by_pyerofs(scene)


def test_a_layout_is_read_lazily_too(scene: Scene, images: LazyScene) -> None:
    done = scene.mount_image(images.names["containers"], fstype=FUSE)
    assert "converting" not in done.err and "read whole" not in done.err
    assert_same(images.expected("containers"), scene.mnt)
    by_pyerofs(scene)


def publish(fake: FakeRegistry, layout: Path, tag: str) -> str:
    """Put an image of a layout into a registry that can be told how to behave; its name there."""
    for name, data in skopeo.blobs(layout).items():
        fake.blobs[f"sha256:{name}"] = data
    digest = skopeo.tags(layout)[tag]
    for reference in (tag, digest):
        fake.add_manifest(reference, fake.blobs[digest])
    return f"{fake.host}/app:{tag}"


class Small(NamedTuple):
    """An image of one layer with a TOC, at a registry, and its files."""

    name: str
    layer: LazyLayer
    files: dict[str, bytes]


@pytest.fixture(params=["estargz", "zstd:chunked"])
def small(request: pytest.FixtureRequest, fake: FakeRegistry, scene: Scene) -> Small:
    chance = random.Random(5)
    files = {f"file-{number}": chance.randbytes(270_000) for number in range(16)}
    make = stargz_layer if request.param == "estargz" else chunked_layer
    layer = make(archive(*(file(name, data) for name, data in files.items())))
    layout = Layout(scene.directory / "small")
    lazy_image(layout, [layer], "small")
    return Small(publish(fake, layout.path, "small"), layer, files)


def flip(blob: bytes, *places: int) -> Callable[[Exchange], None]:
    """A registry that sends this blob, whole or in ranges, with one bit changed at each of these places."""
    damaged = bytearray(blob)
    for at in places:
        damaged[at] ^= 1 << at % 8

    def answer(exchange: Exchange) -> None:
        if exchange.blob != blob:
            return honest(exchange)
        first, end = exchange.range
        data = bytes(damaged[first:end])
        return exchange.partial(data) if exchange.headers.get("Range") else exchange.reply(200, data)

    return answer


def test_a_mount_and_its_names_fetch_the_table_of_contents_alone(
    scene: Scene, fake: FakeRegistry, small: Small
) -> None:
    """The first read fetches contents, and how far it reads ahead is the store's affair."""
    toc, _ = read(small.layer)
    end = toc.units.offsets[len(toc.units) // 2]  # the end of the layer is fetched without knowing where the TOC begins
    assert "converting" not in scene.mount_image(small.name, fstype=FUSE).err
    assert [(name, (scene.mnt / name).stat().st_size) for name in sorted(os.listdir(scene.mnt))] == sorted(
        (name, len(content)) for name, content in small.files.items()
    )
    asked = [re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers.get("range", "")) for seen in fake.seen]
    assert all(int(found[1]) > end for found in asked if found) and any(asked)
    assert (scene.mnt / "file-0").read_bytes() == small.files["file-0"]
    by_pyerofs(scene)


def test_a_flipped_bit_is_an_error_of_its_file_alone(scene: Scene, fake: FakeRegistry, small: Small) -> None:
    toc, entries = read(small.layer)
    unit = next(entry for entry in entries if entry.entry.name == b"file-3").pieces[-1].unit
    fake.default = flip(small.layer.blob, toc.units.offsets[unit] + toc.units.stored[unit] // 2)
    scene.mount_image(small.name, "oci.timeout=5s", fstype=FUSE)
    for name, content in small.files.items():
        if name == "file-3":
            with pytest.raises(OSError, match="Input/output error"):
                (scene.mnt / name).read_bytes()
        else:
            assert (scene.mnt / name).read_bytes() == content
    by_pyerofs(scene)


def test_a_flipped_bit_of_the_toc_leads_to_the_whole_layer_and_that_is_not_believed(
    scene: Scene, fake: FakeRegistry, small: Small
) -> None:
    end = len(small.layer.blob)
    at = end - 80 if small.layer.media_type.endswith("gzip") else end - 250
    fake.default = flip(small.layer.blob, at)
    failed = scene.run("mount", "-t", FUSE, "-o", f"oci.cache={scene.cache},oci.timeout=5s", small.name, scene.mnt)
    assert failed.status == 32
    assert "its table of contents cannot be used: it" in failed.err
    assert "Traceback" not in failed.err
    scene.nothing_left()


def test_a_registry_without_ranges_is_read_whole(scene: Scene, fake: FakeRegistry, small: Small) -> None:
    fake.default = whole()
    done = scene.mount_image(small.name, fstype=FUSE)
    assert "is read whole: its table of contents cannot be used: its registry sends no ranges" in done.err
    for name, content in small.files.items():
        assert (scene.mnt / name).read_bytes() == content
    by_pyerofs(scene)


def test_the_format_s_own_files_are_hidden_in_a_layer_that_is_read_whole(scene: Scene) -> None:
    """Also when the device with the names has been lost, and is made again."""
    layers = [
        stargz_layer(archive(file(".no.prefetch.landmark", b"\x0f"), file("one", b"1"), file("one", b"one"))),
        stargz_layer(archive(file(".prefetch.landmark", b"\x0f"), file("two", b"2"), file("two", b"two")), zstd=True),
    ]
    layout = Layout(scene.directory / "stargz")
    name = lazy_image(layout, layers, "app")
    assert scene.mount_image(name, fstype=FUSE).err.count("is read whole") == 2
    assert sorted(os.listdir(scene.mnt)) == ["one", "two"]
    by_pyerofs(scene)
    for path in scene.cache.rglob("data"):
        path.write_bytes(bytes(path.stat().st_size))
    scene.mount_image(name, fstype=FUSE)
    assert sorted(os.listdir(scene.mnt)) == ["one", "two"]
    assert (scene.mnt / "two").read_bytes() == b"two"
    by_pyerofs(scene)


@pytest.mark.parametrize("edit", ["twice", "replaced"])
def test_a_toc_that_is_not_exact_leads_to_the_whole_layer(scene: Scene, edit: str) -> None:
    """With what the archive holds: names that are not UTF-8, and those that are there twice."""
    chance = random.Random(6)
    ballast = file("ballast", chance.randbytes(BALLAST))
    odd = [file("a", b"old"), file("a", b"new")] if edit == "twice" else [file("not \udcff utf-8", b"n")]
    layout = Layout(scene.directory / "odd")
    name = lazy_image(layout, [chunked_layer(archive(ballast, *odd))], "odd")
    done = scene.mount_image(name, fstype=FUSE)
    assert "is read whole: its table of contents cannot be used: it has " in done.err
    if edit == "twice":
        assert (scene.mnt / "a").read_bytes() == b"new"
    else:
        assert Path(os.fsdecode(os.fsencode(scene.mnt) + b"/not \xff utf-8")).read_bytes() == b"n"
    by_pyerofs(scene)
