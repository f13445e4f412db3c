"""A mount that fills its cache, and then one of the same image with the registry gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.images import Images, Layer, push_image
from tests.support.needs import need
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene, by_pyerofs, until
from tests.support.trees import Tree, assert_same


@pytest.mark.usefixtures("nbdfuse")
@pytest.mark.parametrize("mode", ["idle", "full"])
def test_a_filled_image_mounts_without_its_registry(scene: Scene, tree: Tree, images: Images, mode: str) -> None:
    need("docker-registry", "docker-registry")
    layer = Layer(images.plain)

    def state() -> dict[str, object]:
        """What the cache says of the layer."""
        (row,) = json.loads(scene.run("cache", "ls", "--json", "--dir", scene.cache).out)
        assert row["digest"] == layer.digest
        found: dict[str, object] = row
        return found

    with LoggingRegistry(Path(scene.directory) / "registry") as registry:
        push_image(registry, "app", "1", [layer])
        image = f"{registry.host}/app:1"
        scene.mount_image(image, f"oci.fill={mode}", fstype="erofs.fuse")
        until(lambda: state()["verified"], "filled and verified", 60)
        assert state()["in_use"]
        by_pyerofs(scene)
        ranges = len(registry.requests())
    assert 0 < ranges < 100
    assert state()["complete"] and not state()["in_use"]
    done = scene.mount_image(image, fstype="erofs.fuse")
    assert f"continuing with what {image} was" in done.err
    assert_same(tree.entries, scene.mnt)
    by_pyerofs(scene)
    scene.nothing_left()
