"""What kernels before 6.5 cannot do is refused with the reason; this one boots as user-mode Linux."""

from __future__ import annotations

from tests.support.images import push_image
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene
from tests.support.stacks import with_data


def test_a_layer_that_only_lends_its_data(scene: Scene, registry: LoggingRegistry) -> None:
    layers = with_data(scene.directory, "lent", b"lent" * 1000)
    push_image(registry, "app", "older", layers)
    options = f"oci.cache={scene.cache}"
    done = scene.run("mount", "-t", "erofs.nbd", "-o", options, f"{registry.host}/app:older", scene.mnt)
    assert done.status == 32 and done.err.count("\n") == 1
    assert "needs Linux 6.5 or newer" in done.err
    scene.nothing_left()
