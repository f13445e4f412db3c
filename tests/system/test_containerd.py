"""containerd with pyerofs as its snapshotter: by ctr, and by CRI as kubelet does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.containerdstage import ContainerdStage, busybox, layer
from tests.support.cri import Cri
from tests.support.ordinary import Layout, file, read_json
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene

LARGE = random.Random(18).randbytes(6 << 20)  # what nobody reads
READ = random.Random(81).randbytes(1 << 20)


class Shelf(NamedTuple):
    """Images in the registry: in an index with EROFS, of EROFS layers, of tar layers on those of `dual`.

    `tar`: the digests of the tar layers of `dual`.
    """

    pause: str
    dual: str
    native: str
    child: str
    tar: list[str]


@pytest.fixture(scope="module")
def shelf(registry: LoggingRegistry, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    where = tmp_path_factory.mktemp("shelf")
    scene = Scene(where)
    layout = Layout(where / "layout")
    data = layer(file("data/large", LARGE), file("data/read", READ))
    base = [layer(*busybox()), data, layer(file("data/top", b"top"))]
    image = layout.image(base)
    child = layout.image([*base[:2], layer(file("data/child", b"child"))])
    script = file("pause", b"#!/bin/sh\nexec sleep 1000000\n", mode=0o755)
    pause = layout.image([layer(*busybox(), script)], command=["/pause"])

    def put(entry: dict[str, object], name: str, command: str, *how: str) -> str:
        target = f"{registry.host}/c/{name}:1"
        done = scene.make(command, *how, "-O", "oci.insecure", layout.tag(entry, name), target)
        assert done.status == 0, done.err
        return target

    return Shelf(
        pause=put(pause, "pause", "push"),
        dual=put(image, "dual", "convert", "--index"),
        native=put(image, "native", "convert", "--layer-type", "vnd.oci.image.layer.v1.erofs"),
        child=put(child, "child", "push"),
        tar=[found["digest"] for found in read_json(layout.path, str(image["digest"]))["layers"]],
    )


@pytest.fixture
def stage(tmp_path: Path, registry: LoggingRegistry, shelf: Shelf) -> Iterator[ContainerdStage]:
    with ContainerdStage(tmp_path, registry.host, shelf.pause) as stage:
        yield stage


@pytest.fixture
def cri(stage: ContainerdStage) -> Iterator[Cri]:
    with Cri(stage.address) as cri:
        yield cri


def test_a_container_runs_lazily_and_leaves_nothing(
    stage: ContainerdStage, cri: Cri, shelf: Shelf, registry: LoggingRegistry
) -> None:
    """By the EROFS image in its index: containerd fetches no layer of it."""
    before = len(registry.requests())
    cri.pull(shelf.dual)
    asked = registry.requests()[before:]
    assert not any(digest in request for request in asked for digest in shelf.tar)
    pod = cri.run_pod("one")
    container = cri.run(pod, "c", shelf.dual, "/bin/sleep", "1000000")
    ran = cri.exec(container, "/bin/sh", "-c", "cat /data/top; md5sum < /data/read; touch /data/mine; ls /data")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("top") and ran.out.endswith("large\nmine\nread\ntop\n")
    assert len(stage.workers()) == 1
    cri.remove(container)
    cri.remove_pod(pod)
    for image in (shelf.dual, shelf.pause):
        cri.remove_image(image)
    stage.collected()
