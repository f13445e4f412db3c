"""One image, of five layers with everything, in all the ways in which its layers can be mounted lazily."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

from tests.support import skopeo
from tests.support.dockerregistry import DockerRegistry
from tests.support.images import OCI_MANIFEST
from tests.support.lazyimages import (
    STORABLE,
    CtrRemote,
    LazyLayer,
    by_skopeo,
    chunked_layer,
    lazy_image,
    stargz_layer,
)
from tests.support.ordinary import GZIP, PACK, Layout, file
from tests.support.tarballs import archive
from tests.support.trees import Entry, survey

BALLAST = 1_300_000  # bytes that do not compress: smaller layers are read whole
# Tags, and options of `ctr-remote images convert`.
BY_CTR_REMOTE = {
    "estargz": ("--estargz", "--estargz-chunk-size", "300000"),
    "zstdchunked": ("--zstdchunked",),
}
TAGS = (*BY_CTR_REMOTE, "skopeo", "containers", "mixed")


class LazyScene(NamedTuple):
    """`names` of images by TAGS, and as "ordinary"; `entries`: what umoci makes of that."""

    names: dict[str, str]
    entries: dict[str, Entry]

    def expected(self, tag: str) -> dict[str, Entry]:
        """What is to be seen: eStargz has times in whole seconds, a half upwards. Only the second layer has others,
        which is not eStargz in the mixed image."""
        if tag not in BY_CTR_REMOTE:
            return self.entries
        second = 1_000_000_000
        return {
            name: entry._replace(mtime_ns=(entry.mtime_ns + second // 2) // second * second)
            for name, entry in self.entries.items()
        }


def tars() -> list[bytes]:
    chance = random.Random(17)
    return [
        archive(*members, file(f"ballast-{number}", chance.randbytes(BALLAST)))
        for number, members in enumerate(STORABLE)
    ]


def built(layout: Layout) -> dict[str, str]:
    """Names of the images that need no tool: ordinary, containers, mixed."""
    layers = tars()
    mixed = [
        stargz_layer(layers[0], chunk=100_000, share=400_000),
        chunked_layer(layers[1]),
        LazyLayer(PACK[GZIP](layers[2]), GZIP, {}),
        stargz_layer(layers[3], zstd=True),
        stargz_layer(layers[4], footer="old"),
    ]
    return {
        "ordinary": layout.tag(layout.image(layers), "ordinary"),
        "containers": lazy_image(layout, [chunked_layer(layer) for layer in layers], "containers"),
        "mixed": lazy_image(layout, mixed, "mixed"),
    }


def lazy_scene(directory: Path) -> LazyScene:
    """Make all images."""
    layout = Layout(directory / "layout")
    names = built(layout)
    with CtrRemote(directory / "containerd") as converter:
        for tag, options in BY_CTR_REMOTE.items():
            names[tag] = converter.convert(names["ordinary"], directory / "by-ctr-remote", tag, *options)
    names["skopeo"] = by_skopeo(names["ordinary"], directory / "by-skopeo", "skopeo")
    return LazyScene(names, survey(skopeo.unpacked(f"{layout.path}:ordinary", directory / "bundle")))


def push(registry: DockerRegistry, layout: Path, tag: str) -> str:
    """Push an image of a layout without a tool, as guests do; its name."""
    blobs = skopeo.blobs(layout)
    digest = skopeo.tags(layout)[tag]
    manifest = blobs[digest.removeprefix("sha256:")]
    named = json.loads(manifest)
    for descriptor in (named["config"], *named["layers"]):
        registry.put_blob("lazy", blobs[descriptor["digest"].removeprefix("sha256:")])
    registry.put_manifest("lazy", tag, manifest, OCI_MANIFEST)
    return f"{registry.host}/lazy:{tag}"
