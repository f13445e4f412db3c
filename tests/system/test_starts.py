"""Starts on this machine: traced, prefetched and arranged, by nbdfuse; the tree is the same whatever is done."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.ordinary import Layout, directory, file, symlink
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene, by_pyerofs, until
from tests.support.tarballs import archive
from tests.support.trees import survey

pytestmark = pytest.mark.usefixtures("nbdfuse")
BIG = bytes(range(256)) * 16 * 300  # 300 blocks
BASE = [
    directory("etc"),
    *(file(f"etc/{number:03}", f"{number}".encode() * 3000) for number in range(120)),
    directory("usr"),
    file("usr/big", BIG),
    file("usr/cold", BIG[::-1]),
]
TOP = [file("etc/077", b"new" * 4000), symlink("usr/link", "big"), file("usr/last", b"last" * 5000)]


NEW = [directory("aaa"), file("aaa/a", b"a" * 90_000)]


def do(scene: Scene, *words: str | Path) -> str:
    """What a command prints that succeeds."""
    done = scene.run(*words)
    assert done.status == 0, done.err
    return done.out


def convert(scene: Scene, *words: str | Path) -> str:
    return do(scene, "convert", "-q", "-o", f"oci.cache={scene.cache}", *words)


def stat(scene: Scene) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(do(scene, "stat", "--json", scene.mnt))
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    layout = Layout(tmp_path_factory.mktemp("layout") / "layout")
    layout.tag(layout.image([archive(*BASE), archive(*TOP)]), "app")
    return f"oci:{layout.path}:app"


def start(scene: Scene) -> None:
    """What the image is for."""
    (scene.mnt / "etc/077").read_bytes()
    with (scene.mnt / "usr/link").open("rb") as opened:
        opened.seek(200 * 4096)
        opened.read(10)
    (scene.mnt / "usr/last").read_bytes()


def traced(scene: Scene, source: str, path: Path, *options: str) -> str:
    scene.mount_image(source, f"oci.trace={path}", *options, fstype="erofs.fuse")
    start(scene)
    by_pyerofs(scene)
    return path.read_text()


@pytest.mark.parametrize("options", [[], ["--merge"], ["--compress", "zstd"], ["--merge", "--compress", "zstd"]])
def test_an_optimized_image_has_what_a_start_reads_first(
    scene: Scene, image: str, registry: LoggingRegistry, tmp_path: Path, options: list[str]
) -> None:
    text = traced(scene, image, tmp_path / "trace")
    assert "file /etc/077\n" in text and "file /usr/big\n" in text and "file /usr/last\n" in text
    name = f"{registry.host}/starts/{'-'.join(options).replace('--', '') or 'plain'}"
    first = convert(scene, *options, "--optimize", tmp_path / "trace", image, f"{name}:1")
    again = convert(scene, *options, "--optimize", tmp_path / "trace", image, f"{name}:2")
    assert first.split()[0] == again.split()[0]
    convert(scene, *options, image, f"{name}:plain")
    scene.mount_image(f"{name}:plain", fstype="erofs.fuse")
    expected = survey(scene.mnt)
    by_pyerofs(scene)
    before = len(registry.requests())
    scene.mount_image(f"{name}:1", fstype="erofs.fuse")
    start(scene)
    asked = len(registry.requests()) - before
    assert survey(scene.mnt) == expected
    by_pyerofs(scene)
    assert asked < 16
    scene.nothing_left()


def test_a_start_is_learned_and_used_for_the_next_tag(
    scene: Scene, image: str, registry: LoggingRegistry, tmp_path: Path
) -> None:
    other = Layout(tmp_path / "layout")
    other.tag(other.image([archive(*layer) for layer in (NEW, BASE, TOP)]), "app")
    for source, tag in ((image, "1"), (f"oci:{other.path}:app", "2")):
        convert(scene, "--merge", source, f"{registry.host}/learned:{tag}")
    scene.mount_image(f"{registry.host}/learned:1", fstype="erofs.fuse")
    start(scene)
    until(lambda: list(scene.cache.glob("traces/*")), "learned")
    by_pyerofs(scene)
    scene.mount_image(f"{registry.host}/learned:2", fstype="erofs.fuse")
    status = stat(scene)
    until(lambda: stat(scene)["fetches"]["in_flight"] == 0, "quiet")
    misses = stat(scene)["reads"]["misses"]
    (scene.mnt / "usr/last").read_bytes()
    assert stat(scene)["reads"]["misses"] == misses
    assert status["reads"]["failed"] == 0
    by_pyerofs(scene)


@pytest.mark.parametrize("content", ["", "garbage\n", "pyerofs-trace 1\nread 0 0 0 1000000000 - 0\n"])
def test_what_was_learned_may_be_anything(
    scene: Scene, image: str, registry: LoggingRegistry, content: str, request: pytest.FixtureRequest
) -> None:
    name = f"{registry.host}/odd-{len(content)}"
    convert(scene, "--merge", image, f"{name}:1")
    scene.mount_image(f"{name}:1", fstype="erofs.fuse")
    until(lambda: list(scene.cache.glob("traces/*")), "learned")
    by_pyerofs(scene)
    (learned,) = scene.cache.glob("traces/*")
    for entry in scene.cache.glob("sha256+chunks/*"):
        subprocess.run(["rm", "-r", entry], check=True)
    learned.write_text(content)
    scene.mount_image(f"{name}:1", fstype="erofs.fuse")
    assert (scene.mnt / "usr/big").read_bytes() == BIG
    by_pyerofs(scene)


def test_a_living_mount_tells_its_trace(scene: Scene, image: str, tmp_path: Path) -> None:
    scene.mount_image(image, fstype="erofs.fuse")
    start(scene)
    found = tmp_path / "trace"
    do(scene, "trace", scene.mnt, "-O", found)
    assert "file /usr/last\n" in found.read_text()
    assert do(scene, "trace", scene.mnt).startswith("pyerofs-trace 1\n")
    picture = tmp_path / "picture.svg"
    shown = do(scene, "trace", "show", found, "--plot", picture)
    assert "/usr/last" in shown and "/usr/cold" not in shown.replace("(", "")
    assert picture.read_text().startswith("<svg") and "</svg>" in picture.read_text()
    merged = do(scene, "trace", "merge", found, found)
    assert merged == found.read_text()
    by_pyerofs(scene)


def test_a_mount_prefetches_what_it_is_told(
    scene: Scene, image: str, registry: LoggingRegistry, tmp_path: Path
) -> None:
    name = f"{registry.host}/told:1"
    convert(scene, "--merge", image, name)
    scene.mount_image(name, "oci.prefetch=none", fstype="erofs.fuse")
    said = do(scene, "prefetch", scene.mnt, "/usr/cold", "--wait")
    assert said == "1.2 MiB of 1.2 MiB here\n"
    before = len(registry.requests())
    assert (scene.mnt / "usr/cold").read_bytes() == BIG[::-1]
    do(scene, "prefetch", scene.mnt, "--wait")
    assert stat(scene)["cache"]["complete"]
    assert len(registry.requests()) > before
    by_pyerofs(scene)


def test_options_that_cannot_be_are_one_line(scene: Scene, image: str, tmp_path: Path) -> None:
    def said(*words: str | Path) -> str:
        done = scene.run(*words)
        assert done.status and done.out == "" and done.err.count("\n") == 1, done
        return done.err

    trace = tmp_path / "trace"
    trace.write_text("garbage")
    assert "it is no trace" in said("convert", "--optimize", trace, image, f"oci:{tmp_path}/out:a")
    assert "No such file" in said("convert", "--optimize", tmp_path / "none", image, f"oci:{tmp_path}/out:a")
    assert "failed in the image" in said("convert", "-q", "--optimize-for", "/none", image, f"oci:{tmp_path}/out:a")
    assert "absolute paths" in said("mount", "-o", "oci.prefetch=usr", image, scene.mnt)
    assert "is no trace" in said("trace", "show", trace)
