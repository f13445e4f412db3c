"""convert by any user, into any kind of layers, and only what has not been converted before."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.images.layer import SOURCE_CHAIN, SOURCE_RECIPE
from tests.support import skopeo
from tests.support.images import EROFS
from tests.support.needs import need, need_root
from tests.support.ordinary import GZIP, TAR, Layout, check_layer, file, link, mounted, read_json, tars
from tests.support.ordinaryscene import FUSE, need_to_mount
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene, by_pyerofs
from tests.support.skopeo import blobs, tags
from tests.support.tarballs import archive
from tests.support.trees import assert_same, survey

ROOT = Path(__file__).parents[2]
# Modules are loaded as root, who alone may read the Python of some machines.
AS_USER = """
import importlib, locale, os, pkgutil, sys
import pyerofs
for module in pkgutil.walk_packages(pyerofs.__path__, "pyerofs."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
os.umask(0o077)
from pyerofs.cli import main
sys.exit(main.main(sys.argv[1:]))
"""
LARGE = os.urandom(5 << 20)  # more than what is kept beside a layer's table


@pytest.fixture(autouse=True)
def needs() -> None:
    need_root()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """app: five layers; large: two, one of them not small, with a link to it."""
    layout = Layout(tmp_path_factory.mktemp("source") / "layout")
    layout.tag(layout.image(tars()), "app")
    layout.tag(layout.image([archive(file("large", LARGE)), archive(link("linked", "large"), file("x"))]), "large")
    return layout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoggingRegistry]:
    need("docker-registry", "docker-registry")
    with LoggingRegistry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def homes() -> Iterator[Path]:
    """Where everybody may go."""
    path = Path(tempfile.mkdtemp(prefix="pyerofs-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_an_ordinary_user_makes_the_same(scene: Scene, source: Layout, homes: Path) -> None:
    """What nobody but root could unpack, too: devices, owners, trusted xattrs."""
    assert scene.make("convert", "-q", f"oci:{source.path}:app", f"oci:{scene.directory}/out:app").status == 0
    home = homes / "home"
    shutil.copytree(source.path, home / "source")
    (home / "tree").mkdir()
    (home / "tree/file").write_text("mine")
    for path in (home, *home.rglob("*")):
        os.chown(path, 12345, 12345)
    environment = {"HOME": str(home), "TMPDIR": "/nowhere", "PATH": os.environ["PATH"], "PYEROFS_CONFIG": ""}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", AS_USER, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)

    done = run("convert", "-q", f"oci:{home}/source:app", f"oci:{home}/out:app")
    assert (done.returncode, done.stderr) == (0, "")
    assert blobs(home / "out") == blobs(scene.directory / "out")
    assert list((home / ".cache/pyerofs/work").iterdir()) == []
    done = run("build", "-q", home / "tree", f"oci:{home}/out:built")
    assert (done.returncode, done.stderr) == (0, "")


def test_layers_that_were_read_are_not_read_again(scene: Scene, source: Layout, server: LoggingRegistry) -> None:
    """Not even where what lies above is another, and the destination too."""
    skopeo.copy(f"oci:{source.path}:large", f"docker://{server.host}/kept:one")
    other = Layout(scene.directory / "other")
    name = other.tag(other.image([archive(file("large", LARGE)), archive(file("y"))]), "app")
    skopeo.copy(name, f"docker://{server.host}/kept:two")
    assert scene.make("convert", f"{server.host}/kept:one", f"oci:{scene.directory}/out:one").status == 0
    before = len(server.requests("/kept/blobs/"))
    done = scene.make("convert", f"{server.host}/kept:two", f"oci:{scene.directory}/out:two")
    assert done.status == 0, done.err
    assert done.err.splitlines()[0].endswith("already there")
    assert len(server.requests("/kept/blobs/")) == before + 2  # the config, and the layer that is new


@pytest.mark.parametrize("used", [False, True])
def test_kept_contents_that_are_spoiled_are_read_again(scene: Scene, source: Layout, used: bool) -> None:
    """Also where others use the entry, which mends it for them."""
    name = f"oci:{source.path}:large"
    assert scene.make("convert", "-q", name, f"oci:{scene.directory}/out:app").status == 0
    [data] = scene.cache.glob("sha256+chunks/*/data")
    with data.open("r+b") as spoiled:
        spoiled.seek(1 << 20)
        spoiled.write(b"spoiled")
        spoiled.flush()
        if used:
            fcntl.flock(spoiled, fcntl.LOCK_SH)
        done = scene.make("convert", "-q", name, f"oci:{scene.directory}/again:app")
        assert done.status == 0, done.err
        spoiled.seek(1 << 20)
        assert (spoiled.read(7) == b"spoiled") is not used
    assert blobs(scene.directory / "again") == blobs(scene.directory / "out")


def test_what_the_destination_has_is_not_even_fetched(scene: Scene, source: Layout, server: LoggingRegistry) -> None:
    """By another machine, which has nothing in its cache; what is missing there is made."""
    skopeo.copy(f"oci:{source.path}:app", f"docker://{server.host}/there:tar")
    names = f"{server.host}/there:tar", f"{server.host}/there:erofs"
    first = scene.make("convert", *names)
    assert first.err.count("pushed") == 5, first.err
    shutil.rmtree(scene.cache)
    before = len(server.requests("/there/blobs/"))
    again = scene.make("convert", *names)
    assert (again.out, again.err.count("already there")) == (first.out, 5)
    assert len(server.requests("/there/blobs/")) == before + 1  # the config


@pytest.mark.parametrize(
    ("recipe", "others"),
    [(["--verity"], 5), (["--chunk-size", "64K"], 5), (["--compress", "zstd:1"], 5), (["--merge"], 1)],
)
def test_what_was_made_by_another_recipe_is_made_again(
    scene: Scene, source: Layout, recipe: list[str], others: int
) -> None:
    names = f"oci:{source.path}:app", f"oci:{scene.directory}/out:app"
    assert scene.make("convert", "-q", *names).status == 0
    plain = read_json(scene.directory / "out", tags(scene.directory / "out")["app"])
    done = scene.make("convert", "-q", *recipe, *names)
    assert done.status == 0, done.err
    made = read_json(scene.directory / "out", tags(scene.directory / "out")["app"])
    recipes = {layer["annotations"][SOURCE_RECIPE] for found in (plain, made) for layer in found["layers"]}
    assert len(recipes) == 2 and len(made["layers"]) == others
    again = scene.make("convert", *recipe, *names)
    assert (again.out, again.err.count("already there")) == (done.out, others)


def test_a_layer_is_another_above_others(scene: Scene) -> None:
    """So what is there of it says what it lies on."""
    layout, out = Layout(scene.directory / "layout"), scene.directory / "out"
    above = archive(link("new", "old"))
    for content in (b"one", b"two"):
        name = layout.tag(layout.image([archive(file("old", content * 1000)), above]), content.decode())
        assert scene.make("convert", "-q", name, f"oci:{out}:app").status == 0
        layers = read_json(out, tags(out)["app"])["layers"]
        paths = [out / "blobs" / layer["digest"].replace(":", "/") for layer in layers]
        with mounted(paths, scene.directory / content.decode()) as merged:
            assert (merged / "new").read_bytes() == content * 1000


def test_gc_keeps_what_convert_used_lately(scene: Scene, source: Layout) -> None:
    """Else each run of it from a timer would have the next conversion read all layers again."""
    kept = scene.cache / "layers"
    assert scene.make("convert", "-q", f"oci:{source.path}:app", f"oci:{scene.directory}/one:app").status == 0
    before = sorted(path.name for path in kept.iterdir())
    assert len(before) == 5
    dir_ = f"--dir={scene.cache}"
    assert scene.run("cache", "gc", dir_).status == 0
    assert sorted(path.name for path in kept.iterdir()) == before
    assert scene.run("cache", "rm", dir_, "--all").status == 0
    assert list(kept.iterdir()) == []


def test_layers_merged_into_one(scene: Scene, source: Layout, tmp_path: Path) -> None:
    expected = survey(skopeo.unpacked(f"{source.path}:app", tmp_path / "bundle"))
    out = scene.directory / "out"
    done = scene.make("convert", "--merge", f"oci:{source.path}:app", f"oci:{out}:app")
    assert done.status == 0, done.err
    assert done.err.startswith("pyerofs: all 5 layers  sha256:") and len(done.err.splitlines()) == 1
    manifest = read_json(out, tags(out)["app"])
    [layer] = manifest["layers"]
    path = out / "blobs" / layer["digest"].replace(":", "/")
    check_layer(path)
    with mounted([path], tmp_path / "native") as root:
        assert_same(expected, root)
    config = read_json(out, manifest["config"]["digest"])
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    assert [step.get("empty_layer", False) for step in config["history"]] == [True] * 4 + [False]
    again = scene.make("convert", "--merge", f"oci:{source.path}:app", f"oci:{out}:app")
    assert (again.out, again.err.count("already there")) == (done.out, 1)


def test_an_index_has_the_ordinary_image_first(scene: Scene, source: Layout, server: LoggingRegistry) -> None:
    """Under the tag that the ordinary image has had; a second time nothing changes."""
    name = f"{server.host}/both:app"
    skopeo.copy(f"oci:{source.path}:app", f"docker://{name}")
    done = scene.make("convert", "-q", "--index", name, name)
    assert done.status == 0, done.err
    assert scene.make("convert", "-q", "--index", name, name).out == done.out
    out = scene.directory / "out"
    assert scene.run("pull", "-q", name, f"oci:{out}:app").status == 0
    index = read_json(out, tags(out)["app"])
    assert [entry["platform"] for entry in index["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "amd64", "os": "linux", "os.features": ["erofs"]},
    ]
    first, second = (read_json(out, entry["digest"]) for entry in index["manifests"])
    assert first == read_json(source.path, tags(source.path)["app"])
    assert {layer["mediaType"] for layer in second["layers"]} == {EROFS}
    back = scene.directory / "back"
    skopeo.copy(f"docker://{name}", f"oci:{back}:app", "--src-tls-verify=false", "--override-arch=amd64")
    manifest = read_json(back, tags(back)["app"])
    assert {layer["mediaType"] for layer in manifest["layers"]} == {GZIP}


def test_an_index_of_all_platforms(scene: Scene, server: LoggingRegistry) -> None:
    layout = Layout(scene.directory / "layout")
    platforms = [{"os": "linux", "architecture": "amd64"}, {"os": "linux", "architecture": "arm64", "variant": "v8"}]
    nowhere = {"os": "unknown", "architecture": "unknown"}
    entries = [
        {**layout.image([archive(file(f"f{number}"))]), "platform": platform, "annotations": {"a": "b"}}
        for number, platform in enumerate([*platforms, nowhere])
    ]
    name = layout.tag(layout.index(entries, annotations={"of": "all"}), "all")
    out = scene.directory / "out"
    done = scene.make("convert", "-q", "--index", name, f"oci:{out}:all")
    assert done.status == 0, done.err
    index = read_json(out, tags(out)["all"])
    assert index["annotations"] == {"of": "all"}
    assert index["manifests"][:3] == entries
    assert [entry["platform"] for entry in index["manifests"][3:]] == [
        {**platform, "os.features": ["erofs"]} for platform in platforms
    ]
    again = scene.make("convert", "-q", "--index", f"oci:{out}:all", f"oci:{scene.directory}/again:all")
    assert again.out.split()[0] == done.out.split()[0]
    assert blobs(scene.directory / "again") == blobs(out)


@pytest.mark.parametrize("kind", ["vnd.erofs", "vnd.erofs.layer.v1", "vnd.oci.image.layer.v1.erofs"])
def test_layer_types(scene: Scene, source: Layout, kind: str) -> None:
    need_to_mount()
    out = f"oci:{scene.directory}/out:app"
    done = scene.make("convert", "-q", "--layer-type", kind, f"oci:{source.path}:large", out)
    assert done.status == 0, done.err
    manifest = read_json(scene.directory / "out", tags(scene.directory / "out")["app"])
    assert {layer["mediaType"] for layer in manifest["layers"]} == {f"application/{kind}"}
    about = manifest["layers"][0]["annotations"]
    assert about[SOURCE_RECIPE] == "layout=1 chunk-size=131072" and about[SOURCE_CHAIN].startswith("sha256:")
    scene.mount_image(out, fstype=FUSE)
    assert (scene.mnt / "linked").read_bytes() == LARGE
    by_pyerofs(scene)
    done = scene.make("convert", "-q", "--compress", "zstd", "--layer-type", kind, f"oci:{source.path}:large", out)
    if kind.startswith("vnd.erofs"):
        manifest = read_json(scene.directory / "out", tags(scene.directory / "out")["app"])
        assert {layer["mediaType"] for layer in manifest["layers"]} == {f"application/{kind}+zstd"}
    else:
        assert done.status == 1
        assert done.error == f"layers of the type {kind} are not compressed: leave out --compress"


def test_another_layer_type_is_refused(scene: Scene) -> None:
    done = scene.run("convert", "--layer-type", "tar", "oci:none", "oci:out")
    assert (done.status, "invalid choice: 'tar'" in done.err) == (1, True)


def test_files_of_a_conversion_that_was_killed_are_removed(scene: Scene, source: Layout) -> None:
    left = scene.cache / "work/left"
    left.mkdir(parents=True, mode=0o700)
    scene.cache.chmod(0o700)
    left.parent.chmod(0o700)
    (left / "layer").write_bytes(bytes(1000))
    assert scene.make("convert", "-q", f"oci:{source.path}:app", f"oci:{scene.directory}/out:app").status == 0
    assert list((scene.cache / "work").iterdir()) == []


def test_the_wrong_diff_id_is_refused_by_its_algorithm(scene: Scene, source: Layout) -> None:
    layout = Layout(scene.directory / "layout")
    name = layout.tag(layout.image([tars()[0]], [TAR], diff_ids=["sha512:" + "0" * 128]), "app")
    done = scene.make("convert", "-q", name, f"oci:{scene.directory}/out:app")
    assert done.status == 32
    assert "has another content than the config says: sha512:" in done.error
    assert list(blobs(scene.directory / "out")) == []
