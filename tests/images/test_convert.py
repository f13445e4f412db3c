"""Ordinary images become native ones: seen by the kernel, by fsck.erofs, umoci and skopeo; the same each time."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pyerofs.cli import main
from pyerofs.erofs import chunk_index, dmverity
from pyerofs.erofs.zstd import inflate
from tests.support import ordinary, skopeo
from tests.support.dockerregistry import DockerRegistry
from tests.support.images import EROFS, OCI_CONFIG, OCI_MANIFEST, digest_of
from tests.support.needs import need, need_root
from tests.support.ordinary import (
    GZIP,
    LAYERS,
    TAR,
    ZSTD,
    Layout,
    check_layer,
    directory,
    file,
    mounted,
    read_json,
    symlink,
    tars,
)
from tests.support.scene import Scene
from tests.support.skopeo import blobs, tags
from tests.support.tarballs import archive
from tests.support.trees import assert_same, survey


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    need_root()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """app: five layers, gzip. mixed: the same, packed in other ways. all: two platforms and an attestation."""
    layout = Layout(tmp_path_factory.mktemp("source") / "layout")
    app = layout.image(tars(), annotations={"org.opencontainers.image.title": "kept"})
    layout.tag(app, "app")
    layout.tag(
        layout.image(tars(), [TAR, ZSTD, GZIP, ZSTD, TAR], annotations={"org.opencontainers.image.title": "kept"}),
        "mixed",
    )
    arm = layout.image([tars()[0]], architecture="arm64")
    attestation = layout.image([archive(file("provenance"))])
    layout.tag(layout.index([
        {**app, "platform": {"os": "linux", "architecture": "amd64"}, "annotations": {"a": "b"}},
        {**arm, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        {**attestation, "platform": {"os": "unknown", "architecture": "unknown"}},
    ], annotations={"of": "all"}), "all")  # fmt: skip
    return layout


@pytest.fixture(scope="module")
def converted(source: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with the native app."""
    path = tmp_path_factory.mktemp("converted") / "layout"
    cache = f"oci.cache={path.parent}/cache"
    assert main.main(["convert", "-q", "-o", cache, f"oci:{source.path}:app", f"oci:{path}:app"]) == 0
    return path


def manifest_of(layout: Path, tag: str = "app") -> dict[str, Any]:
    return read_json(layout, tags(layout)[tag])


def layer_paths(layout: Path, manifest: dict[str, Any]) -> list[Path]:
    return [layout / "blobs" / layer["digest"].replace(":", "/") for layer in manifest["layers"]]


def test_the_kernel_shows_what_umoci_unpacks(source: Layout, converted: Path, tmp_path: Path) -> None:
    expected = survey(skopeo.unpacked(f"{source.path}:app", tmp_path / "bundle"))
    with mounted(layer_paths(converted, manifest_of(converted)), tmp_path / "native") as merged:
        assert_same(expected, merged)


def test_what_the_image_is_about_is_there(converted: Path, tmp_path: Path) -> None:
    """Independent of umoci."""
    with mounted(layer_paths(converted, manifest_of(converted)), tmp_path) as merged:
        found = survey(merged)
    assert not {"d/a", "gone/x", "gone/deep", "opaque/old", "opaque/sub", "to-move", "page1"} & set(found)
    assert {"gone/again", "opaque/new", "moved", "becomes-dir/in", "usr/lib/two", "d/c"} <= set(found)
    assert found["lonely"].links == found["linked"].links == ("linked", "lonely")
    assert found["lonely"].mode == "4755"
    assert found["d"][1:4] == ("1777", (5, 6), 1_600_000_100 * 10**9)
    assert found["capable"].xattrs.keys() == {"security.capability"}
    assert found["fine"].mtime_ns == 1_600_000_000_123_456_789
    assert found["old"].mtime_ns == -1000 * 10**9
    assert found["sparse"].size == 3 << 20
    assert (found["null"].content, found["disk"].content) == ("1:3", "259:70000")
    assert found["."].mode == "0751"


def test_each_layer_is_sound(converted: Path) -> None:
    for path, layer in zip(
        layer_paths(converted, manifest_of(converted)), manifest_of(converted)["layers"], strict=True
    ):
        check_layer(path)
        assert layer["mediaType"] == EROFS
        assert layer["annotations"]["org.erofs.role"] == "overlay-lower"
        data = path.read_bytes()
        where = chunk_index.locate(layer["annotations"], layer["size"], False)
        assert where is not None
        assert where.end == len(data)
        index = chunk_index.parse(data[where.offset :], where)
        assert index is not None
        assert index.size == where.offset
        for number in range(len(index)):
            chunk = index.chunk(number)
            assert chunk.length <= chunk_index.CHUNK_SIZE
            chunk.verify(data[chunk.offset : chunk.offset + chunk.stored])


def test_config_and_manifest(source: Layout, converted: Path) -> None:
    before, after = manifest_of(source.path), manifest_of(converted)
    assert after["mediaType"] == OCI_MANIFEST
    assert after["config"]["mediaType"] == OCI_CONFIG
    assert after["annotations"] == before["annotations"]
    old, new = (read_json(at, m["config"]["digest"]) for at, m in ((source.path, before), (converted, after)))
    assert new.pop("os.features") == ["erofs"]
    assert new["rootfs"].pop("diff_ids") == [layer["digest"] for layer in after["layers"]]
    del old["rootfs"]["diff_ids"]
    assert new == old


def test_the_same_each_time_and_everywhere(
    scene: Scene, source: Layout, converted: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = scene.make("convert", f"oci:{source.path}:app", f"oci:{scene.directory}/again:app",
        env={"TMPDIR": str(elsewhere), "SOURCE_DATE_EPOCH": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}, cwd=elsewhere,
    )  # fmt: skip
    assert (done.status, done.out.split()[0]) == (0, tags(converted)["app"]), done.err
    assert blobs(scene.directory / "again") == blobs(converted)
    assert list(elsewhere.iterdir()) == []
    lines = done.err.splitlines()
    assert len(lines) == len(LAYERS)
    assert lines[0].startswith("pyerofs: layer 1 of 5  sha256:")
    assert all(line.endswith("written") for line in lines)


def test_on_another_filesystem(scene: Scene, source: Layout, converted: Path) -> None:
    memory = scene.directory / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", memory], check=True)
    try:
        done = scene.make("convert", f"oci:{source.path}:app", f"oci:{memory}/again:app", env={"TMPDIR": str(memory)})
        assert (done.status, done.out.split()[0]) == (0, tags(converted)["app"]), done.err
    finally:
        subprocess.run(["umount", memory], check=True)


def test_how_layers_are_packed_makes_no_difference(scene: Scene, source: Layout, converted: Path) -> None:
    done = scene.make("convert", "-q", f"oci:{source.path}:mixed", f"oci:{scene.directory}/out:app")
    assert done.out.split()[0] == tags(converted)["app"], done.err


def test_docker_archive(scene: Scene, source: Layout, converted: Path) -> None:
    tar = scene.directory / "app.tar"
    skopeo.copy(f"oci:{source.path}:app", f"docker-archive:{tar}:org/app:1", "--src-tls-verify=false")
    out = scene.directory / "out"
    for name, tag in ((f"docker-archive:{tar}", "a"), (f"docker-archive:{tar}:org/app:1", "b")):
        assert scene.make("convert", "-q", name, f"oci:{out}:{tag}").status == 0
    subprocess.run(["gzip", "-k", tar], check=True)
    done = scene.make("convert", "-q", f"docker-archive:{tar}.gz:docker.io/org/app:1", f"oci:{out}:c")
    assert done.status == 0, done.err
    assert tags(out)["a"] == tags(out)["b"] == tags(out)["c"]
    assert [layer["digest"] for layer in manifest_of(out, "a")["layers"]] == [
        layer["digest"] for layer in manifest_of(converted)["layers"]
    ]
    assert "it has docker.io/org/app:1: say which" in scene.make("convert", f"docker-archive:{tar}:no", "oci:x").error
    assert "not a valid tar" in scene.make("convert", f"docker-archive:{source.path}/oci-layout", "oci:x").error
    other = scene.directory / "other.tar"
    other.write_bytes(archive(file("x")))
    assert "is it from docker save?" in scene.make("convert", f"docker-archive:{other}", "oci:x").error


def test_all_platforms(scene: Scene, source: Layout, converted: Path) -> None:
    out = scene.directory / "out"
    done = scene.make("convert", f"oci:{source.path}:all", f"oci:{out}:all")
    assert done.status == 0, done.err
    found = manifest_of(out, "all")
    assert found["annotations"] == {"of": "all"}
    amd, arm = found["manifests"]
    assert amd["platform"] == {"architecture": "amd64", "os": "linux", "os.features": ["erofs"]}
    assert arm["platform"] == {"architecture": "arm64", "os": "linux", "variant": "v8", "os.features": ["erofs"]}
    assert amd["digest"] == tags(converted)["app"]
    assert amd["annotations"] == {"a": "b"}
    assert "pyerofs: linux/arm64 layer 1 of 1" in done.err
    done = scene.make("convert", "-q", "-o", "oci.platform=linux/arm64", f"oci:{source.path}:all", f"oci:{out}:arm")
    assert done.out.split()[0] == arm["digest"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    need("docker-registry", "docker-registry")
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as server:
        yield server


def test_from_and_to_a_registry(scene: Scene, source: Layout, server: DockerRegistry) -> None:
    skopeo.copy(f"oci:{source.path}:all", f"docker://{server.host}/org/app:tar")
    names = f"{server.host}/org/app:tar", f"{server.host}/org/app:erofs"
    done = scene.make("convert", *names)
    assert done.status == 0, done.err
    assert done.err.count("pushed") == 5
    assert done.err.count("already there") == 1  # the base is both platforms'
    again = scene.make("convert", *names)
    assert again.out == done.out
    assert again.err.count("already there") == 6
    shown = scene.run("inspect", "-o", "oci.platform=linux/amd64", names[1])
    assert shown.out.count("EROFS") == 5
    assert "linux/arm64 (erofs)" in shown.out
    target = scene.directory / "layer"
    with target.open("wb") as out:
        assert scene.start("read", "-o", f"oci.layer=4,oci.platform=linux/amd64,oci.cache={scene.cache}", names[1],
                           stdout=out.fileno()).wait(60) == 0  # fmt: skip
    check_layer(target)


@pytest.mark.parametrize("options", [(), ("--all",)])
def test_skopeo_copies_it_unchanged(
    scene: Scene, converted: Path, server: DockerRegistry, options: tuple[str, ...]
) -> None:
    """Without being asked to preserve digests: it does not touch what it does not know."""
    plain = ("--src-tls-verify=false", *options)
    there, back = f"docker://{server.host}/org/copied:{len(options)}", scene.directory / "back"
    skopeo.copy(f"oci:{converted}:app", there, *plain)
    skopeo.copy(there, f"oci:{back}:app", *plain)
    assert tags(back) == tags(converted)
    assert blobs(back) == blobs(converted)


def test_chunk_size(scene: Scene, source: Layout) -> None:
    out = scene.directory / "out"
    assert scene.make("convert", "-q", "--chunk-size", "1M", f"oci:{source.path}:app", f"oci:{out}:app").status == 0
    layer = manifest_of(out)["layers"][2]
    first, end = map(int, layer["annotations"][chunk_index.RANGE].split(":"))
    assert end - first == 32 + -(-first // (1 << 20)) * 48


@pytest.mark.parametrize("text", ["gzip", "zstd:0", "zstd:23", "zstd:", "zstd:x", ""])
def test_other_compressions_are_refused(scene: Scene, text: str) -> None:
    done = scene.make("convert", "--compress", text, "oci:none", "oci:out")
    assert done.status == 1
    assert f"{text!r} is not zstd, or zstd:LEVEL from zstd:1 to zstd:22" in done.err


def test_verity(scene: Scene, source: Layout, converted: Path) -> None:
    """Each layer has a tree, and is else what it is without."""
    out = scene.directory / "out"
    assert scene.make("convert", "-q", "--verity", f"oci:{source.path}:app", f"oci:{out}:app").status == 0
    made, before = (manifest_of(at)["layers"] for at in (out, converted))
    for layer, plain in zip(made, before, strict=True):
        tree = dmverity.find(layer["annotations"], 4096)
        assert tree is not None and str(tree.offset) == plain["annotations"][chunk_index.RANGE].partition(":")[0]


@pytest.mark.parametrize("extra", [(), ("--verity",), ("--chunk-size", "16K")])
def test_compressed(scene: Scene, source: Layout, extra: tuple[str, ...]) -> None:
    """The same images, in frames that anything can decompress that knows zstd; smaller; the same each time."""
    plain, out, again = (f"oci:{scene.directory}/{name}:app" for name in ("plain", "out", "again"))
    name = f"oci:{source.path}:app"
    assert scene.make("convert", "-q", *extra, name, plain).status == 0
    done = [scene.make("convert", "-q", *extra, "--compress", "zstd", name, at) for at in (out, again)]
    assert [one.status for one in done] == [0, 0], done
    assert done[0].out.partition(" ")[0] == done[1].out.partition(" ")[0]
    raw, made = manifest_of(scene.directory / "plain"), manifest_of(scene.directory / "out")
    contents = []
    for old, new in zip(raw["layers"], made["layers"], strict=True):
        image = (scene.directory / "plain/blobs" / old["digest"].replace(":", "/")).read_bytes()
        image = image[: int(old["annotations"][chunk_index.RANGE].partition(":")[0])]
        blob = (scene.directory / "out/blobs" / new["digest"].replace(":", "/")).read_bytes()
        assert new["mediaType"] == f"{EROFS}+zstd" and new["size"] == len(blob) < old["size"]
        assert zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True).read() == image
        contents.append(digest_of(image))
        assert new["annotations"]["org.erofs.uncompressed-digest"] == contents[-1]
        where = chunk_index.locate(new["annotations"], len(blob), True)
        assert where is not None and where.end == len(blob)
        index = chunk_index.parse(blob[where.offset :], where)
        assert index is not None and index.size == len(image)
        for number in range(len(index)):
            chunk = index.chunk(number)
            stored = blob[chunk.offset : chunk.offset + chunk.stored]
            chunk.verify(stored)
            assert inflate(stored, chunk.length) == image[chunk.start : chunk.start + chunk.length]
        assert dmverity.find(new["annotations"], 4096) == dmverity.find(old["annotations"], 4096)
    assert read_json(scene.directory / "out", made["config"]["digest"])["rootfs"]["diff_ids"] == contents


# What cannot be converted: one line, nothing left


@pytest.mark.parametrize(("layers", "error"), [
    ([[file("../x")]], "the entry '../x' of the layer: it leads out of the image"),
    ([[symlink("s", "s"), file("s/x")]], "the entry 's/x' of the layer: there are too many symbolic links"),
    ([[file("a")], [file(".wh..")]], "it deletes what has no name"),
    ([[file("huge", b"x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 60)})]], "too fine holes"),
])  # fmt: skip
def test_hostile_layers(scene: Scene, layers: list[list[ordinary.Member]], error: str) -> None:
    layout = Layout(scene.directory / "layout")
    name = layout.tag(layout.image([archive(*members) for members in layers]), "bad")
    fails(scene, name, 32, error)


def fails(scene: Scene, name: str, status: int, error: str) -> None:
    scratch = scene.directory / "scratch"
    scratch.mkdir()
    out = scene.directory / "out"
    done = scene.make("convert", "-q", name, f"oci:{out}:x", env={"TMPDIR": str(scratch)})
    assert error in done.error
    assert done.status == status
    assert list(scratch.iterdir()) == []
    assert tags(out) == {}


@pytest.mark.parametrize(("make", "error"), [
    (lambda layout: layout.image([tars()[0]], diff_ids=[digest_of(b"")]), "has another content than the config says"),
    (lambda layout: layout.image([tars()[0]], diff_ids=[digest_of(b"")] * 2), "2 diff_ids for 1 layers"),
    (lambda layout: layout.image([b"x" * 4096], [TAR]), "not a valid tar archive"),
    (lambda layout: layout.image([tars()[0][:5000]], [TAR]), "an end within an entry"),
    (lambda layout: layout.image([b"x"], [EROFS]), "is EROFS already: copy the image with push or pull"),
    (lambda layout: layout.image([b"x"], ["application/x"]), "of the unknown type application/x"),
    (lambda layout: layout.image([tars()[0]], config=layout.add_json({}, "a/x")), "not a container image"),
    (lambda layout: layout.image([tars()[0]], config=layout.add_json([], OCI_CONFIG)), "config is not a JSON object"),
    (lambda layout: layout.image([tars()[0]], config=layout.add_json({}, OCI_CONFIG)), "config has no diff_ids"),
    (lambda layout: layout.index([]), "its index is empty"),
])  # fmt: skip
def test_unsound_images(scene: Scene, make: Any, error: str) -> None:
    layout = Layout(scene.directory / "layout")
    fails(scene, layout.tag(make(layout), "bad"), 32, error)


def test_a_corrupt_blob(scene: Scene, source: Layout) -> None:
    layout = Layout(scene.directory / "layout")
    name = layout.tag(layout.image(tars()), "bad")
    path = layout.path / "blobs" / manifest_of(layout.path, "bad")["layers"][1]["digest"].replace(":", "/")
    path.write_bytes(path.read_bytes() + b"more")
    fails(scene, name, 32, "is corrupt")


def test_all_entries_may_have_no_platform(scene: Scene) -> None:
    layout = Layout(scene.directory / "layout")
    name = layout.tag(layout.index([layout.image([archive(directory("d"))])]), "one")
    out = scene.directory / "out"
    assert scene.make("convert", "-q", name, f"oci:{out}:app").status == 0
    assert "platform" not in manifest_of(out)["manifests"][0]
