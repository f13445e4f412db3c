"""What the cache keeps of images that are read by their tables of contents; and which layers are read whole instead."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pyerofs.config.options import ReadOptions
from pyerofs.context import NOBODY
from pyerofs.erofs.layer import describe_converted
from pyerofs.oci.location import Location
from pyerofs.source import converted_cache
from pyerofs.source.open import reopen_layers
from tests.support import skopeo
from tests.support.fakeregistry import FakeRegistry, status, whole
from tests.support.lazyimages import LazyLayer, chunked_layer, lazy_image, stargz_layer
from tests.support.ordinary import GZIP, PACK, Layout, file
from tests.support.ordinaryscene import FUSE, entries, home, need_to_mount
from tests.support.scene import Scene, by_pyerofs, until
from tests.support.tarballs import archive

QUIET = "pyerofs: driver fuse: as asked\n"  # with -v
CHANCE = random.Random(17)
ONE, TWO = CHANCE.randbytes(1_500_000), CHANCE.randbytes(1_500_000)


@pytest.fixture(autouse=True)
def needs() -> None:
    need_to_mount()


def two_layers() -> list[LazyLayer]:
    return [
        stargz_layer(archive(file("one", ONE), file("both", b"1")), chunk=200_000),
        chunked_layer(archive(file("two", TWO), file("both", b"2"))),
    ]


@pytest.fixture
def layout(scene: Scene) -> Layout:
    return Layout(scene.directory / "lazy")


@pytest.fixture
def image(layout: Layout) -> str:
    return lazy_image(layout, two_layers(), "two")


def publish(fake: FakeRegistry, layout: Layout, tag: str) -> str:
    for name, data in skopeo.blobs(layout.path).items():
        fake.blobs[f"sha256:{name}"] = data
    digest = skopeo.tags(layout.path)[tag]
    for reference in (tag, digest):
        fake.add_manifest(reference, fake.blobs[digest])
    return f"{fake.host}/app:{tag}"


def assert_read(scene: Scene) -> None:
    assert (scene.mnt / "one").read_bytes() == ONE
    assert (scene.mnt / "two").read_bytes() == TWO
    assert (scene.mnt / "both").read_bytes() == b"2"


def tables(scene: Scene) -> list[Path]:
    return sorted((scene.cache / "layers").glob("toc-*/table"))


def data_with(scene: Scene, content: bytes) -> Path:
    [found] = [path for path in scene.cache.glob("sha256+*/*/data") if content in path.read_bytes()]
    return found


# Kept


def test_a_second_image_asks_for_the_tables_that_it_does_not_share(
    scene: Scene, fake: FakeRegistry, layout: Layout
) -> None:
    shared, own = two_layers()
    lazy_image(layout, [shared], "first")
    lazy_image(layout, [shared, own], "second")
    assert scene.mount_image(publish(fake, layout, "first"), fstype=FUSE).err == QUIET
    assert (scene.mnt / "one").read_bytes() == ONE
    by_pyerofs(scene)
    second = publish(fake, layout, "second")
    before = len(fake.requests("/blobs/"))
    assert scene.mount_image(second, fstype=FUSE).err == QUIET
    assert len(fake.requests("/blobs/")) == before + 1
    assert (scene.mnt / "one").read_bytes() == ONE
    assert len(fake.requests("/blobs/")) == before + 1
    assert_read(scene)
    by_pyerofs(scene)
    assert len(tables(scene)) == 2


def test_an_image_that_says_something_else_of_a_layer_has_a_table_of_its_own(
    scene: Scene, layout: Layout, image: str
) -> None:
    scene.mount_image(image, fstype=FUSE)
    by_pyerofs(scene)
    one, two = two_layers()
    lied = lazy_image(layout, [one, two._replace(annotations={**two.annotations, "note": "another"})], "lied")
    scene.mount_image(lied, fstype=FUSE)
    assert_read(scene)
    by_pyerofs(scene)
    assert len(tables(scene)) == 3
    assert len([row for row in entries(scene) if "+map:" in row["digest"]]) == 2  # the bytes are the same


@pytest.mark.parametrize("what", ["entry", "chunks", "chunks' content", "table and chunks", "image"])
def test_what_is_lost_is_made_again_out_of_the_table(scene: Scene, layout: Layout, image: str, what: str) -> None:
    scene.mount_image(image, fstype=FUSE)
    assert_read(scene)
    by_pyerofs(scene)
    path = data_with(scene, ONE[:9000]).parent
    if what == "entry":
        shutil.rmtree(path)
    elif what == "image":
        (home(scene, skopeo.tags(layout.path)["two"]) / "image").unlink()
    elif what == "chunks' content":
        spoiled = bytearray((path / "chunks").read_bytes())
        spoiled[-40] ^= 1
        (path / "chunks").write_bytes(spoiled)
    else:
        (path / "chunks").unlink()
        if what.startswith("table"):
            for table in tables(scene):
                table.write_bytes(table.read_bytes()[:-1])
    assert scene.mount_image(image, fstype=FUSE).err == QUIET
    assert_read(scene)
    by_pyerofs(scene)


@pytest.mark.parametrize("kind", ["map", "chunks"])
def test_what_is_spoiled_is_never_served(scene: Scene, image: str, kind: str) -> None:
    """Contents are fetched again, by the chunk map; names and attributes are made again, out of kept tables."""
    scene.mount_image(image, fstype=FUSE)
    assert_read(scene)
    by_pyerofs(scene)
    data = data_with(scene, ONE[:9000]) if kind == "map" else next(scene.cache.glob("sha256+chunks/*/data"))
    content = bytearray(data.read_bytes())
    at = content.index(ONE[:4096]) if kind == "map" else 1024
    content[at : at + 512] = b"spoiled ".ljust(512, b"!")
    with data.open("r+b") as written:
        written.write(content)
    scene.mount_image(image, fstype=FUSE)
    assert_read(scene)
    assert sorted(os.listdir(scene.mnt)) == ["both", "one", "two"]
    by_pyerofs(scene)


def test_the_cache_s_commands_know_a_lazy_device(scene: Scene, image: str) -> None:
    scene.mount_image(image, fstype=FUSE)
    by_pyerofs(scene)
    said = scene.run("cache", "ls", "--dir", scene.cache).out
    assert "converted, 3 devices" in said and "layers are missing" not in said
    assert "no longer converted" not in scene.run("cache", "gc", "--dir", scene.cache).out
    scene.mount_image(image, fstype=FUSE)
    assert_read(scene)
    by_pyerofs(scene)
    done = scene.run("cache", "verify", "--dir", scene.cache)
    assert done.status == 0 and done.out.count("  verified") == 3
    data = data_with(scene, TWO[:9000])
    content = data.read_bytes()
    data.write_bytes(content.replace(TWO[:100], bytes(100)))
    done = scene.run("cache", "verify", "--dir", scene.cache)
    assert done.status != 0 and "removed: a chunk does not match" in done.out


def test_a_layer_is_opened_again_from_its_record_without_its_registry(scene: Scene, layout: Layout, image: str) -> None:
    """As a worker does that takes the place of another."""
    scene.mount_image(image, fstype=FUSE)
    assert_read(scene)
    by_pyerofs(scene)
    digest = skopeo.tags(layout.path)["two"]
    found = converted_cache.find_converted(str(scene.cache), digest, image, ReadOptions())
    assert found is not None
    with found:
        layers = [describe_converted(found.image.manifest, n) for n in range(len(found.image.manifest.layers))]
    known = [(layer, _size(scene, layer.verified_key)) for layer in layers]
    shutil.rmtree(layout.path)
    options = ReadOptions(cache=str(scene.cache), verify="none")
    for open_, (layer, length) in zip(reopen_layers(Location.parse(image), known, options), known, strict=True):
        source = open_(NOBODY)
        assert (source.origin, source.size, source.storage.key) == (layer, length, layer.verified_key)
        assert type(layer).from_dict(layer.as_dict()) == layer
        source.close()


def _size(scene: Scene, key: str) -> int:
    return int(next(row["size"] for row in entries(scene) if row["digest"] == key))


# Mixed, and read whole


def test_layers_with_and_without_tables_small_and_large_are_one_mount(
    scene: Scene, fake: FakeRegistry, layout: Layout
) -> None:
    lazy = two_layers()
    large = LazyLayer(PACK[GZIP](archive(file("three", TWO * 3))), GZIP, {})
    small = [stargz_layer(archive(file(f"small-{n}", b"%d" % n))) for n in range(58)]
    lazy_image(layout, [small[0], lazy[0], large, lazy[1], *small[1:]], "mixed")
    done = scene.mount_image(publish(fake, layout, "mixed"), fstype=FUSE)
    assert done.err.count("\n") == 2 and "converting it into" in done.err
    assert len(entries(scene)) == 4  # devices, for 61 layers
    assert_read(scene)
    assert (scene.mnt / "three").read_bytes() == TWO * 3
    assert all((scene.mnt / f"small-{n}").read_bytes() == b"%d" % n for n in range(58))
    by_pyerofs(scene)


def test_small_layers_are_fetched_at_once_by_their_tables(scene: Scene, fake: FakeRegistry, layout: Layout) -> None:
    """One request each, and no config: skopeo 1.9 makes layers whose archives are not those that the config names."""
    small = [chunked_layer(archive(file("one", b"1" * 9000))), stargz_layer(archive(file("two", bytes(5 << 20))))]
    name = lazy_image(layout, small, "small")
    digest = skopeo.tags(layout.path)["small"]
    image = publish(fake, layout, "small")
    config = json.loads(fake.blobs[digest])["config"]["digest"]
    assert scene.mount_image(image, fstype=FUSE).err == QUIET
    assert (scene.mnt / "one").read_bytes() == b"1" * 9000
    assert (scene.mnt / "two").read_bytes() == bytes(5 << 20)
    assert len(fake.requests("/blobs/")) == 2 and not fake.requests(config)
    assert len(entries(scene)) == 1, name
    by_pyerofs(scene)


def test_a_registry_without_ranges_gives_the_layers_whole(scene: Scene, fake: FakeRegistry, layout: Layout) -> None:
    lazy_image(layout, two_layers(), "two")
    fake.default = whole()
    done = scene.mount_image(publish(fake, layout, "two"), fstype=FUSE)
    assert done.err.count("its registry sends no ranges, only whole layers") == 2
    assert "Traceback" not in done.err
    assert_read(scene)
    by_pyerofs(scene)


def _twice(toc: dict[str, Any]) -> None:
    toc["entries"].append(toc["entries"][0])


def _without_digest(toc: dict[str, Any]) -> None:
    for entry in toc["entries"]:
        entry.pop("chunkDigest", None)
        entry.pop("digest", None)


@pytest.mark.parametrize(("edit", "why"), [(_twice, "twice"), (_without_digest, "no digest")])
def test_a_table_that_is_not_exact_gives_the_layer_whole(scene: Scene, layout: Layout, edit: Any, why: str) -> None:
    layer = stargz_layer(archive(file("one", ONE)), edit=edit)
    done = scene.mount_image(lazy_image(layout, [layer], "odd"), fstype=FUSE)
    assert done.err.count("is read whole: its table of contents cannot be used: ") == 1 and why in done.err
    assert (scene.mnt / "one").read_bytes() == ONE
    by_pyerofs(scene)


# Options


def test_verify_require_takes_them_and_verity_require_does_not(scene: Scene, image: str) -> None:
    scene.mount_image(image, "oci.verify=require", fstype=FUSE)
    assert_read(scene)
    by_pyerofs(scene)
    options = f"oci.cache={scene.cache},oci.verity=require"
    done = scene.run("mount", "-t", FUSE, "-o", options, image, scene.mnt)
    assert done.status == 32 and "dm-verity" in done.error
    scene.nothing_left()


def test_a_filled_device_needs_its_registry_no_more(scene: Scene, fake: FakeRegistry, layout: Layout) -> None:
    lazy_image(layout, two_layers(), "two")
    name = publish(fake, layout, "two")
    scene.mount_image(name, "oci.fill=full", fstype=FUSE)
    until(lambda: all(row["complete"] for row in entries(scene)), "that all of it is there")
    by_pyerofs(scene)
    fake.default = status(503)
    scene.mount_image(name, fstype=FUSE)
    assert_read(scene)
    by_pyerofs(scene)
