"""Images of ordinary layers, mounted (-t erofs.fuse): converted once, into the cache, and then as native ones are."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.cache.lock import lock_entry
from pyerofs.kernel import mountpoint
from pyerofs.mounting import mount as mounting
from tests.support import skopeo
from tests.support.dockerregistry import DockerRegistry
from tests.support.fakeregistry import Exchange, FakeRegistry, honest, short, stall
from tests.support.needs import need
from tests.support.ordinary import LAYERS, TAR, Layout, file, tars
from tests.support.ordinaryscene import FUSE, TWO, digest_of_image, entries, home, need_to_mount, small_image
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, by_pyerofs, until
from tests.support.tarballs import archive
from tests.support.trees import Entry, assert_same, survey

SAYS = "has no EROFS layers (5 layers of tar+gzip, "


@pytest.fixture(autouse=True)
def needs() -> None:
    need_to_mount()


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """app: five layers with everything. all: the same for amd64, another image for arm64."""
    made = Layout(tmp_path_factory.mktemp("ordinary") / "layout")
    app = made.image(tars())
    made.tag(app, "app")
    arm = made.image([archive(file("arm", b"64"))], architecture="arm64")
    places = [{"os": "linux", "architecture": name} for name in ("arm64", "amd64")]
    entries = [{**entry, "platform": place} for entry, place in zip((arm, app), places, strict=True)]
    made.tag(made.index(entries), "all")
    return made


@pytest.fixture(scope="module")
def expected(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Entry]:
    """What umoci makes of it."""
    return survey(skopeo.unpacked(f"{layout.path}:app", tmp_path_factory.mktemp("umoci") / "bundle"))


@pytest.fixture(scope="module")
def published(layout: Layout, registry: LoggingRegistry) -> str:
    skopeo.copy(f"oci:{layout.path}:app", f"docker://{registry.host}/ordinary/app:1")
    return f"{registry.host}/ordinary/app:1"


@pytest.fixture
def small(scene: Scene) -> tuple[Layout, str]:
    return small_image(scene)


def put(fake: FakeRegistry, layout: Layout, tag: str = "small") -> str:
    """The image of a layout, at a registry that can be told how to behave."""
    for name, data in skopeo.blobs(layout.path).items():
        fake.blobs[f"sha256:{name}"] = data
    digest = digest_of_image(layout, tag)
    for reference in (tag, digest):
        fake.add_manifest(reference, fake.blobs[digest])
    return f"{fake.host}/app:{tag}"


# What is seen


def test_the_whole_tree(
    scene: Scene, registry: LoggingRegistry, layout: Layout, published: str, expected: dict[str, Entry]
) -> None:
    done = scene.mount_image(published, "nosuid", fstype=FUSE)
    assert f"pyerofs: {published} {SAYS}" in done.err
    assert f"converting it into {scene.cache}, once (oci.convert=no refuses)" in done.err
    found = mountpoint.find(str(scene.mnt))
    assert found is not None and found.fstype == "erofs" and "nosuid" in found.options
    assert_same(expected, scene.mnt)
    assert sum("pyerofs.daemon.worker" in text for text in scene.processes().values()) == 1
    assert sorted(os.listdir(home(scene, digest_of_image(layout, "app")))) == ["image", "lock"]
    by_pyerofs(scene)
    before = registry.requests()
    done = scene.mount_image(published, fstype=FUSE)
    assert "converting" not in done.err
    assert_same(expected, scene.mnt)
    assert registry.requests() == before
    by_pyerofs(scene)


def test_without_its_registry(scene: Scene, layout: Layout, expected: dict[str, Entry]) -> None:
    need("docker-registry", "docker-registry")
    with DockerRegistry(scene.directory / "registry") as registry:
        skopeo.copy(f"oci:{layout.path}:app", f"docker://{registry.host}/app:1")
        image = f"{registry.host}/app"
        scene.mount_image(f"{image}:1", fstype=FUSE)
        by_pyerofs(scene)
    done = scene.mount_image(f"{image}:1", fstype=FUSE)
    assert f"continuing with what {image}:1 was" in done.err
    assert_same(expected, scene.mnt)
    by_pyerofs(scene)


def test_the_caller_hears_nothing_that_it_does_not_want(scene: Scene, small: tuple[Layout, str]) -> None:
    for number, (arguments, options) in enumerate(((["-q"], ""), ([], ",silent"))):
        cache = scene.directory / f"cache{number}"
        done = scene.run("mount", *arguments, "-t", FUSE, "-o", f"oci.cache={cache}{options}", small[1], scene.mnt)
        assert done == Done(0, "", "")
        by_pyerofs(scene)


def test_who_watches_sees_how_far_it_is(scene: Scene, small: tuple[Layout, str]) -> None:
    said: list[str] = []
    seen: list[str] = []
    mounting.mount(
        small[1], str(scene.mnt), f"oci.cache={scene.cache}", fstype=FUSE, report=said.append, watch=seen.append
    )
    assert "converting" in said[0]
    assert [line.split("  ")[0] for line in said[1:]] == ["layer 1 of 2", "layer 2 of 2"]
    assert seen[0].startswith("read  ") and seen.count("") == 2
    mounting.unmount(str(scene.mnt))


def test_a_native_mount_loads_nothing_of_it() -> None:
    """Start time is what an image's user waits for."""
    loaded = "import sys, pyerofs.daemon.worker, pyerofs.mounting.mount; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True)
    ours = {name.removeprefix("pyerofs.") for name in done.stdout.split()}
    assert "daemon.worker" in ours
    assert not ours & {"source.converted_cache", "oci.layout", "oci.docker_archive", "registry.upload"}
    assert not [name for name in ours if name.startswith("images.")]


def test_the_platform_decides(scene: Scene, layout: Layout) -> None:
    scene.mount_image(f"oci:{layout.path}:all", "oci.platform=linux/arm64", fstype=FUSE)
    assert os.listdir(scene.mnt) == ["arm"]
    by_pyerofs(scene)
    done = scene.mount_image(f"oci:{layout.path}:all", "oci.platform=linux/amd64", fstype=FUSE)
    assert SAYS in done.err
    assert (scene.mnt / "bin" / "sh").exists()
    by_pyerofs(scene)


@pytest.mark.parametrize("options", [["oci.verify=require"], ["oci.verify=none"], ["cache.max=4K"]])
def test_with_options(scene: Scene, layout: Layout, expected: dict[str, Entry], options: list[str]) -> None:
    scene.mount_image(f"oci:{layout.path}:app", *options, fstype=FUSE)
    assert_same(expected, scene.mnt)
    assert {row["digest"].partition(":")[0] for row in entries(scene)} == {"sha256+chunks"}
    by_pyerofs(scene)


def test_a_writable_mount(scene: Scene, small: tuple[Layout, str]) -> None:
    for name in ("up", "work"):
        (scene.directory / name).mkdir()
    scene.mount_image(small[1], "oci.upperdir=up", "oci.workdir=work", "rw", fstype=FUSE)
    (scene.mnt / "one").write_bytes(b"changed")
    by_pyerofs(scene)
    assert (scene.directory / "up" / "one").read_bytes() == b"changed"


# Where it is


def test_a_path_from_where_the_caller_stands(scene: Scene, small: tuple[Layout, str]) -> None:
    scene.mount_image("oci:small:small", fstype=FUSE)
    assert (scene.mnt / "two").read_bytes() == TWO
    [row] = [row for row in json.loads(scene.run("list", "--json").out) if row["target"] == str(scene.mnt)]
    assert row["source"] == small[1]
    by_pyerofs(scene)


def test_a_docker_archive(scene: Scene, layout: Layout, expected: dict[str, Entry]) -> None:
    skopeo.copy(f"oci:{layout.path}:app", f"docker-archive:{scene.directory}/app.tar:app:1", "--quiet")
    scene.mount_image("docker-archive:app.tar", fstype=FUSE)
    assert_same(expected, scene.mnt)
    by_pyerofs(scene)
    assert "converting" not in scene.mount_image("docker-archive:app.tar:app:1", fstype=FUSE).err
    by_pyerofs(scene)


# Several at once


def test_two_at_once_convert_once(scene: Scene, registry: LoggingRegistry, layout: Layout, published: str) -> None:
    path = home(scene, digest_of_image(layout, "app"))
    path.mkdir(parents=True, mode=0o700)
    for directory in (scene.cache, path.parent):
        directory.chmod(0o700)
    lock = lock_entry(str(path))
    assert lock is not None
    before = len(registry.requests())
    targets = [scene.mnt, scene.directory / "mnt2"]
    targets[1].mkdir()
    options = f"oci.cache={scene.cache}"
    mounts = [scene.start("mount", "-t", FUSE, "-o", options, published, target) for target in targets]
    said = [mount.stderr.readline() for mount in mounts if mount.stderr]
    assert said == [f"pyerofs: {published} is being converted by another process: waiting for it\n"] * 2
    os.close(lock)
    rest = [mount.communicate(timeout=60)[1] for mount in mounts]
    assert [mount.returncode for mount in mounts] == [0, 0]
    assert sorted(SAYS in text for text in rest) == [False, True]
    assert len(registry.requests()) - before == len(LAYERS) + 1  # and the config
    for target in targets:
        assert (target / "bin" / "sh").exists()
        assert scene.run("umount", target).status == 0


def test_one_that_waits_can_be_interrupted(scene: Scene, small: tuple[Layout, str]) -> None:
    path = home(scene, digest_of_image(small[0]))
    path.mkdir(parents=True, mode=0o700)
    for directory in (scene.cache, path.parent):
        directory.chmod(0o700)
    lock = lock_entry(str(path))
    assert lock is not None
    mount = scene.start("mount", "-t", FUSE, "-o", f"oci.cache={scene.cache}", small[1], scene.mnt)
    assert mount.stderr is not None and "waiting" in mount.stderr.readline()
    mount.send_signal(signal.SIGINT)
    assert mount.communicate(timeout=30)[1] == ""
    assert mount.returncode == 8
    scene.nothing_left()
    os.close(lock)


# What ends before its time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_conversion_that_is_ended(scene: Scene, fake: FakeRegistry, small: tuple[Layout, str], number: int) -> None:
    """While the first layer comes; then it is tried again."""
    image = put(fake, small[0])
    release, reached = threading.Event(), threading.Event()
    fake.default = stall(release, after=100, reached=reached)
    mount = scene.start("mount", "-t", FUSE, "-o", f"oci.cache={scene.cache}", image, scene.mnt)
    assert reached.wait(30)
    mount.send_signal(number)
    _, errors = mount.communicate(timeout=30)
    assert mount.returncode == (-number if number == signal.SIGKILL else 8)
    assert "Traceback" not in errors
    release.set()
    scene.nothing_left()
    path = home(scene, digest_of_image(small[0]))
    assert sorted(os.listdir(path)) == (["lock", "work"] if number == signal.SIGKILL else ["lock"])
    fake.default = honest
    scene.mount_image(image, fstype=FUSE)
    assert (scene.mnt / "two").read_bytes() == TWO
    assert sorted(os.listdir(path)) == ["image", "lock"]
    by_pyerofs(scene)


def test_layers_that_were_finished_are_used(scene: Scene, fake: FakeRegistry, small: tuple[Layout, str]) -> None:
    image = put(fake, small[0])
    second = json.loads(fake.blobs[digest_of_image(small[0])])["layers"][1]["digest"]
    tables = functools.partial((scene.cache / "layers").glob, "*/table")

    def missing(exchange: Exchange) -> None:
        if not exchange.path.endswith(second):
            return honest(exchange)
        until(lambda: list(tables()), "the first layer is finished")  # both come at once, and a failure ends the other
        return exchange.reply(404, b"")

    fake.default = missing
    done = scene.run("mount", "-t", FUSE, "-o", f"oci.cache={scene.cache}", image, scene.mnt)
    assert done.status == 32 and second in done.err.splitlines()[-1]
    scene.nothing_left()
    [kept] = tables()
    assert not (home(scene, digest_of_image(small[0])) / "image").exists()
    fake.default = honest
    first = kept.parent.name.replace("-", ":")
    before = len(fake.requests(f"/blobs/{first}"))
    scene.mount_image(image, fstype=FUSE)
    assert len(fake.requests(f"/blobs/{first}")) == before
    by_pyerofs(scene)


def test_a_second_tag_brings_only_what_it_does_not_share(
    scene: Scene, fake: FakeRegistry, small: tuple[Layout, str]
) -> None:
    scene.mount_image(put(fake, small[0]), fstype=FUSE)
    by_pyerofs(scene)
    base = [archive(file("one", b"1" * 300_000), file("both", b"1")), archive(file("two", TWO))]
    small[0].tag(small[0].image([*base, archive(file("three", b"3" * 5000))]), "other")
    image = put(fake, small[0], "other")
    layers = [each["digest"] for each in json.loads(fake.blobs[digest_of_image(small[0], "other")])["layers"]]
    before = {digest: len(fake.requests(f"/blobs/{digest}")) for digest in layers}
    scene.mount_image(image, fstype=FUSE)
    asked = [len(fake.requests(f"/blobs/{digest}")) - before[digest] for digest in layers]
    assert asked == [0, 0, 1]
    assert ((scene.mnt / "two").read_bytes(), (scene.mnt / "three").read_bytes()) == (TWO, b"3" * 5000)
    by_pyerofs(scene)


def test_a_stream_that_breaks_off_goes_on(scene: Scene, fake: FakeRegistry) -> None:
    content = random.Random(1).randbytes(400_000)
    layout = Layout(scene.directory / "broken")
    layout.tag(layout.image([archive(file("a", content))]), "small")
    image = put(fake, layout)
    layer = json.loads(fake.blobs[digest_of_image(layout)])["layers"][0]["digest"]

    def breaking(exchange: Exchange) -> None:
        if layer in exchange.path and len(fake.requests(layer)) < 4:
            short(70_000)(exchange)
        else:
            honest(exchange)

    fake.default = breaking
    scene.mount_image(image, fstype=FUSE)
    assert (scene.mnt / "a").read_bytes() == content
    firsts = [seen.headers["range"].removeprefix("bytes=").split("-")[0] for seen in fake.requests(layer)]
    assert firsts == ["0", "70000", "140000", "210000"]
    by_pyerofs(scene)


@pytest.fixture
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A filesystem of 3 MiB."""
    path = tmp_path_factory.mktemp("memory")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_disk_that_is_full(scene: Scene, layout: Layout, memory: Path) -> None:
    done = scene.run("mount", "-t", FUSE, "-o", f"oci.cache={memory}/cache", f"oci:{layout.path}:app", scene.mnt)
    *announced, error = done.err.splitlines()
    assert done.status == 2 and SAYS in announced[0]
    assert "No space left on device: free some room in " in error
    scene.nothing_left()
    [path] = (memory / "cache" / "converted").iterdir()
    assert os.listdir(path) == ["lock"]
    assert [p.name for p in scene.directory.iterdir() if p.name.startswith("pyerofs-")] == []


def test_a_tag_that_moves_meanwhile(scene: Scene, fake: FakeRegistry, small: tuple[Layout, str]) -> None:
    """What is converted is what was announced, and what the daemon then asks for."""
    image = put(fake, small[0])
    digest = digest_of_image(small[0])
    path = home(scene, digest)
    path.mkdir(parents=True, mode=0o700)
    for directory in (scene.cache, path.parent):
        directory.chmod(0o700)
    lock = lock_entry(str(path))
    assert lock is not None
    mount = scene.start("mount", "-t", FUSE, "-o", f"oci.cache={scene.cache}", image, scene.mnt)
    assert mount.stderr is not None and "waiting" in mount.stderr.readline()
    del fake.manifests["small"]
    os.close(lock)
    assert mount.communicate(timeout=60)[0] == "" and mount.returncode == 0
    assert (scene.mnt / "two").read_bytes() == TWO
    by_pyerofs(scene)


# What is refused


@pytest.mark.parametrize(("options", "text"), [
    (["oci.convert=no"], f"no EROFS layer: an ordinary tar layer ({TAR}+gzip); oci.convert=auto lets mount convert it"),
    (["oci=0"], "layer 0 is not EROFS but an ordinary tar layer"),
    (["oci=0"], "; an ordinary image is mounted whole, without oci.layer and oci.blob"),
])  # fmt: skip
def test_what_is_refused(scene: Scene, layout: Layout, options: list[str], text: str) -> None:
    options = [f"oci.cache={scene.cache}", *options]
    done = scene.run("mount", "-t", FUSE, "-o", ",".join(options), f"oci:{layout.path}:app", scene.mnt)
    assert done.status == 32 and text in done.error
    scene.nothing_left()
    assert not (scene.cache / "converted").exists()
