"""Mounts of a small ordinary image, and what the cache has of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyerofs.source import converted_cache
from tests.support import skopeo
from tests.support.needs import need, need_root
from tests.support.ordinary import Layout, file
from tests.support.scene import Scene
from tests.support.tarballs import archive

FUSE = "erofs.fuse"
TWO = b"2" * (5 << 20)  # more than what is copied to the primary device


def need_to_mount() -> None:
    need_root()
    need("nbdfuse", "libnbd-bin")
    need("mkfs.erofs", "erofs-utils")


def small_image(scene: Scene) -> tuple[Layout, str]:
    """An image of two layers with a file of some size in each, and its name: a small layer, and a large one."""
    made = Layout(scene.directory / "small")
    content = [archive(file("one", b"1" * 300_000), file("both", b"1")), archive(file("two", TWO))]
    return made, made.tag(made.image(content), "small")


def digest_of_image(layout: Layout, tag: str = "small") -> str:
    return skopeo.tags(layout.path)[tag]


def home(scene: Scene, digest: str) -> Path:
    """Where the cache keeps what it knows of a converted image."""
    return Path(converted_cache.path_of(str(scene.cache), digest))


def entries(scene: Scene) -> list[dict[str, Any]]:
    return list(json.loads(scene.run("cache", "ls", "--json", "--dir", scene.cache).out))
