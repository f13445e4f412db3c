"""Images that containers are started from, in a registry; and a container that reads its own."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import NamedTuple

from tests.support.containerdstage import busybox, layer
from tests.support.cri import Cri
from tests.support.dockerregistry import DockerRegistry
from tests.support.ordinary import Layout, file, read_json
from tests.support.scene import Scene

SLEEP = ("/bin/sleep", "1000000")
LARGE = random.Random(18).randbytes(6 << 20)  # what nobody reads
READ = random.Random(81).randbytes(1 << 20)
DIGEST = hashlib.md5(READ).hexdigest()


class Shelf(NamedTuple):
    """Images in the registry: in an index with EROFS, of EROFS layers of two types, of tar layers on those of `dual`.

    `tar`: the digests of the tar layers of `dual`.
    """

    pause: str
    dual: str
    native: str
    canonical: str
    child: str
    tar: list[str]


def fill_shelf(registry: DockerRegistry, where: Path, *, few: bool = False) -> Shelf:
    """`where`: a directory of its own; `few`: only `pause` and `dual`."""
    where.mkdir(exist_ok=True)
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
        native="" if few else put(image, "native", "convert", "--layer-type", "vnd.oci.image.layer.v1.erofs"),
        canonical="" if few else put(image, "canonical", "convert"),
        child="" if few else put(child, "child", "push"),
        tar=[found["digest"] for found in read_json(layout.path, str(image["digest"]))["layers"]],
    )


def read(cri: Cri, container: str) -> str:
    """Return the sum of what a container reads of its image."""
    ran = cri.exec(container, "/bin/md5sum", "/data/read")
    assert (ran.status, ran.err) == (0, "")
    return ran.out.split()[0]
