"""Mounts of layers with chunk indexes, raw and compressed, and of compressed ones without."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pyerofs.daemon.record import read_all
from tests.support.images import Images, Layer, Published, push_image
from tests.support.indexedlayers import compressed, raw, stream
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene, by_pyerofs, by_umount
from tests.support.trees import Tree, assert_same

CHUNK = 128 << 10
KINDS: dict[str, Callable[[bytes], Layer]] = {
    "raw": lambda data: raw(data, CHUNK),
    "zstd": lambda data: compressed(data, CHUNK),
    "stream": stream,
}


@pytest.fixture(scope="module", params=KINDS)
def image(request: pytest.FixtureRequest, registry: LoggingRegistry, images: Images) -> tuple[str, str, Layer]:
    """Its kind, its reference and its layer."""
    layer = KINDS[request.param](images.plain.read_bytes())
    push_image(registry, "verified", request.param, [layer])
    return request.param, f"{registry.host}/verified:{request.param}", layer


@pytest.mark.usefixtures("nbdfuse")
def test_the_whole_tree(scene: Scene, tree: Tree, image: tuple[str, str, Layer]) -> None:
    kind, reference, layer = image
    verify = "auto" if kind == "stream" else "require"
    scene.mount_image(reference, f"oci.verify={verify}", fstype="erofs.fuse")
    (record,) = [r for r in read_all() if r.target == str(scene.mnt)]
    assert record.digest == layer.digest  # of the blob, for people; what the cache goes by is another thing
    assert [part.origin["digest"] for part in record.parts] == [layer.digest]
    assert_same(tree.entries, scene.mnt)
    by_umount(scene)
    scene.nothing_left()
    (row,) = json.loads(scene.run("cache", "ls", "--json", "--dir", scene.cache).out)
    assert row["digest"].startswith("sha256+zstd" if kind == "stream" else "sha256+chunks")


@pytest.mark.parametrize("image", ["raw", "zstd"], indirect=True)
@pytest.mark.usefixtures("nbdfuse")
def test_a_little_of_it_is_fetched_for_a_little(
    scene: Scene, image: tuple[str, str, Layer], registry: LoggingRegistry
) -> None:
    _, reference, _ = image
    before = len(registry.requests())
    scene.mount_image(reference, "oci.verify=require", fstype="erofs.fuse")
    assert (scene.mnt / "hello").read_bytes() == b"hello, world\n"
    by_pyerofs(scene)
    (row,) = json.loads(scene.run("cache", "ls", "--json", "--dir", scene.cache).out)
    assert 0 < row["present"] < row["size"] / 4
    assert len(registry.requests()) - before < 20


def test_require_is_one_line_and_leaves_nothing(scene: Scene, published: Published) -> None:
    done = scene.run("mount", "-t", "erofs.fuse", "-o", "oci.verify=require", published.plain, scene.mnt)
    assert done.status == 32
    assert done.error == (
        f"{published.plain}: layer 0 has no chunk index with hashes to verify it by: "
        "oci.verify=none mounts it without that"
    )
    scene.nothing_left()
    done = scene.run("read", "-o", "oci,oci.verify=maybe", published.plain)
    assert done.status == 1 and "auto, require, none" in done.error
