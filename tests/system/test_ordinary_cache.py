"""What the cache has of ordinary images that were mounted: spoiled, lost, listed, removed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pyerofs.cache import directory as cache_directory
from pyerofs.cache.lock import lock_entry
from pyerofs.config.options import ReadOptions
from pyerofs.context import NOBODY
from pyerofs.erofs.layer import Layer as Described
from pyerofs.erofs.layer import describe
from pyerofs.oci.location import Location
from pyerofs.source import converted_cache
from pyerofs.source.open import reopen_layers
from tests.support.ordinary import Layout, file
from tests.support.ordinaryscene import FUSE, TWO, digest_of_image, entries, home, need_to_mount, small_image
from tests.support.scene import Scene, by_pyerofs, until
from tests.support.tarballs import archive


@pytest.fixture(autouse=True)
def needs() -> None:
    need_to_mount()


@pytest.fixture
def small(scene: Scene) -> tuple[Layout, str]:
    return small_image(scene)


# What is spoiled or gone


def data_of(scene: Scene, content: bytes) -> Path:
    """The cache's file with a layer that has this in it."""
    [found] = [path for path in scene.cache.glob("sha256+chunks/*/data") if content in path.read_bytes()]
    return found


def spoil(path: Path, content: bytes) -> None:
    data = path.read_bytes()
    at = data.index(content) // 4096 * 4096 + 4096
    with path.open("r+b") as f:
        f.seek(at)
        f.write(b"spoiled")


@pytest.mark.parametrize(("name", "content"), [("one", b"1" * 300_000), ("two", TWO)])
def test_what_is_spoiled_is_never_served_and_made_again(
    scene: Scene, small: tuple[Layout, str], name: str, content: bytes
) -> None:
    """For the mount that has found it, while it is mounted: the registry has the bytes."""
    scene.mount_image(small[1], fstype=FUSE)
    by_pyerofs(scene)
    spoil(data_of(scene, content[:9000]), content[:9000])
    log = scene.directory / "log"
    assert "converting" not in scene.mount_image(small[1], f"log.to={log}", fstype=FUSE).err
    assert (scene.mnt / name).read_bytes() == content
    until(lambda: "reading and converting it again" in log.read_text(), "its message")
    by_pyerofs(scene)


def test_what_is_spoiled_and_lost_at_its_origin_is_an_error(scene: Scene, small: tuple[Layout, str]) -> None:
    scene.mount_image(small[1], fstype=FUSE)
    by_pyerofs(scene)
    spoil(data_of(scene, TWO[:9000]), TWO[:9000])
    scene.mount_image(small[1], fstype=FUSE)
    shutil.rmtree(small[0].path)
    with pytest.raises(OSError, match="Input/output error"):
        (scene.mnt / "two").read_bytes()
    assert (scene.mnt / "one").read_bytes() == b"1" * 300_000
    by_pyerofs(scene)


@pytest.mark.parametrize("what", ["entry", "index", "index's content", "image", "image's content"])
def test_what_is_lost_is_converted_again(scene: Scene, small: tuple[Layout, str], what: str) -> None:
    scene.mount_image(small[1], fstype=FUSE)
    by_pyerofs(scene)
    path = data_of(scene, TWO[:5000]).parent if what[:2] != "im" else home(scene, digest_of_image(small[0]))
    name = what.partition("'")[0]
    if what == "entry":
        shutil.rmtree(path)
    elif name == what:
        (path / name).unlink()
    else:
        spoiled = bytearray((path / name).read_bytes())
        spoiled[-40] ^= 1
        (path / name).write_bytes(spoiled)
    assert "converting" in scene.mount_image(small[1], fstype=FUSE).err
    assert (scene.mnt / "two").read_bytes() == TWO
    by_pyerofs(scene)


def test_a_layer_is_opened_again_from_its_record(scene: Scene, small: tuple[Layout, str]) -> None:
    """As a worker does that takes the place of another: no registry, no conversion, no layout."""
    scene.mount_image(small[1], fstype=FUSE)
    by_pyerofs(scene)
    digest = digest_of_image(small[0])
    found = converted_cache.find_converted(str(scene.cache), digest, small[1], ReadOptions())
    assert found is not None
    shutil.rmtree(small[0].path)
    with found:
        layers = [describe(found.image.manifest, number) for number in range(len(found.image.manifest.layers))]
    options = ReadOptions(cache=str(scene.cache), verify="none")
    known = [(Described(**{**as_fields(layer), "converted": True}), size(scene, layer)) for layer in layers]
    for open_, (layer, length) in zip(reopen_layers(Location.parse(small[1]), known, options), known, strict=True):
        source = open_(NOBODY)
        assert (source.origin, source.size, source.storage.key) == (layer, length, layer.verified_key)
        source.close()


def as_fields(layer: Described) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in layer.__slots__}


def size(scene: Scene, layer: Described) -> int:
    found = cache_directory.describe_key(str(scene.cache), layer.verified_key)
    assert found is not None
    return found.size


# What `cache` says of it


def cache(scene: Scene, *arguments: str) -> list[str]:
    done = scene.run("cache", *arguments, "--dir", scene.cache)
    assert (done.status, done.err) == (0, "")
    return done.out.splitlines()


def test_the_cache_knows_it(scene: Scene, small: tuple[Layout, str]) -> None:
    digest = digest_of_image(small[0])
    line = re.escape(f"{digest}  {small[1]}  converted, 2 devices, ") + "[0-9.]+ MiB, "
    scene.mount_image(small[1], fstype=FUSE)
    assert re.fullmatch(f"{line}complete, in use", cache(scene, "ls")[2])
    assert [row["converted_for"] for row in entries(scene)] == [[small[1]]] * 2
    assert "removed 0 blobs" in scene.run("cache", "gc", "--max", "1", "--dir", scene.cache).out
    assert cache(scene, "verify")[0].endswith("  verified")
    assert (scene.mnt / "two").read_bytes() == TWO
    by_pyerofs(scene)
    assert re.fullmatch(f"{line}complete", cache(scene, "ls")[2])
    cache(scene, "rm", entries(scene)[0]["digest"])
    assert len(entries(scene)) == 1
    assert not home(scene, digest).exists()  # it cannot be used any more
    for options in (["gc", "--older-than", "0"], ["gc", "--max", "1"], ["rm", small[1]], ["rm", digest]):
        scene.mount_image(small[1], fstype=FUSE)
        by_pyerofs(scene)
        said = cache(scene, *options)
        assert any(text.startswith(f"{small[1]}  no longer converted") for text in said)
        assert entries(scene) == []
        assert not home(scene, digest).exists()


def test_a_layer_of_two_images_stays_with_the_other(scene: Scene, small: tuple[Layout, str]) -> None:
    base = archive(file("two", TWO))
    other = small[0].tag(small[0].image([base]), "other")
    for image in (small[1], other):
        scene.mount_image(image, fstype=FUSE)
        by_pyerofs(scene)
    assert sorted(len(row["converted_for"]) for row in entries(scene)) == [1, 1, 2]
    cache(scene, "rm", small[1])
    assert [row["converted_for"] for row in entries(scene)] == [[other]] * 2
    assert "converting" not in scene.mount_image(other, fstype=FUSE).err
    by_pyerofs(scene)


def test_gc_leaves_a_conversion_alone(scene: Scene, small: tuple[Layout, str]) -> None:
    path = home(scene, digest_of_image(small[0]))
    (path / "work").mkdir(parents=True, mode=0o700)
    for directory in (scene.cache, path.parent):
        directory.chmod(0o700)
    lock = lock_entry(str(path))
    assert lock is not None
    cache(scene, "gc")
    assert (path / "work").exists()
    os.close(lock)
    cache(scene, "gc")
    assert not path.exists()
