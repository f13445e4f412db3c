"""An image of ordinary layers over NBD in the real kernel: converted, mounted, and alive when its daemons die."""

from __future__ import annotations

import os
import random
import signal

from tests.guest.load import Load, alive_again, record_of
from tests.support.ordinary import Layout, file
from tests.support.scene import Done, Scene, by_pyerofs, until
from tests.support.stacks import write
from tests.support.tarballs import archive
from tests.support.trees import Tree

NBD = "erofs.nbd"


def test_a_life(scene: Scene) -> None:
    """The layout has gone meanwhile: what is converted is in the cache, for every daemon that comes."""
    chance = random.Random(7)
    layout = Layout(scene.directory / "layout")
    together = scene.directory / "together"
    layers = []
    for number in range(3):
        size = 1_000_000 if number == 1 else 100_000  # a device of its own, or a part of the primary one
        files = {f"layer {number}/{n}": chance.randbytes(size + n) for n in range(6)}
        layers.append(archive(*(file(name, content) for name, content in files.items())))
        for name, content in files.items():
            write(together / name, content)
    done = scene.mount_image(layout.tag(layout.image(layers), "app"), fstype=NBD)
    assert "has no EROFS layers (3 layers of tar+gzip" in done.err
    assert [part.how for part in record_of(scene).parts] == ["netlink"] * 2
    layout.path.rename(scene.directory / "away")
    with Load(scene.mnt, Tree(together, {})) as load:
        load.go_on()
        before = record_of(scene)
        os.kill(before.pid, signal.SIGKILL)
        assert alive_again(scene, before).restarts == 1
        load.go_on()
        before = record_of(scene)
        os.kill(before.supervisor, signal.SIGKILL)
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: not before.alive() and not before.supervised(), "the end of both")
        assert scene.run("reattach", scene.mnt) == Done(0, "", "")
        load.go_on()
    by_pyerofs(scene)
    scene.nothing_left()
