"""An image store of pyerofs under real podman."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.kernel import mountpoint
from pyerofs.podman.files import StoreFiles
from tests.support import skopeo
from tests.support.busyimage import BIG, busy_image
from tests.support.dockerregistry import DockerRegistry
from tests.support.needs import need
from tests.support.ordinary import Layout
from tests.support.podman import Podman
from tests.support.scene import Scene

MD5 = hashlib.md5(BIG).hexdigest()


class Shelf:
    """A registry with the same image by several names, of tar layers and natively; and a cache that has it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cache = directory / "cache"
        self.registry = DockerRegistry(directory / "registry")
        self.registry.start()
        self.layout = Layout(directory / "layout")
        self._name = busy_image(self.layout, "busy")
        self.native = f"{self.registry.host}/store/busy:erofs"
        command = [sys.executable, "-m", "pyerofs", "convert", "-q", "-o", f"oci.cache={self.cache}"]
        subprocess.run([*command, self._name, self.native], check=True, stdout=subprocess.DEVNULL)

    def publish(self, tag: str, image: str = "") -> str:
        """The ordinary image, or another one, by this tag."""
        name = f"{self.registry.host}/store/busy:{tag}"
        skopeo.copy(image or self._name, f"docker://{name}")
        return name


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    need("docker-registry", "docker-registry")
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    yield shelf
    shelf.registry.stop()


class Store:
    """A store in the scene, and a podman that has it."""

    def __init__(self, scene: Scene, shelf: Shelf) -> None:
        self.scene = scene
        self.shelf = shelf
        self.directory = scene.directory / "store"
        self.podman = Podman(self.directory)

    def run(self, action: str, *arguments: str | Path, status: int = 0) -> str:
        done = self.scene.run("store", action, "--dir", self.directory, *arguments)
        assert done.status == status, done.err
        return done.err if status else done.out

    def add(self, *arguments: str) -> str:
        """Return the image's ID."""
        return self.run("add", "-o", f"oci.cache={self.shelf.cache}", *arguments).split()[0]

    def remove(self, image: str, status: int = 0) -> str:
        return self.run("rm", "--graph-root", self.podman.root, image, status=status)

    def states(self) -> dict[str, str]:
        """States by name."""
        return {name: image["state"] for image in json.loads(self.run("ls", "--json")) for name in image["names"]}

    @property
    def targets(self) -> list[str]:
        return [m.target for m in mountpoint.mountinfo() if m.target.startswith(StoreFiles(str(self.directory)).run)]

    def reboot(self) -> None:
        """As after one: no mounts, and an empty /run."""
        for target in self.targets:
            assert self.scene.run("umount", target).status == 0
            os.rmdir(target)

    def end(self) -> None:
        self.podman.close()
        for target in self.targets:
            subprocess.run(["umount", "-l", target], check=True)


@pytest.fixture
def store(scene: Scene, shelf: Shelf, nbdfuse: None) -> Iterator[Store]:
    store = Store(scene, shelf)
    try:
        yield store
    finally:
        store.end()
    scene.nothing_left()


def test_podman_starts_what_is_added_and_shows_it_read_only(store: Store) -> None:
    names = [store.shelf.publish("tar"), store.shelf.native]
    for name in names:
        store.add(name)
    shown = store.podman("images", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}").splitlines()
    assert sorted(shown) == sorted(f"{name} true" for name in names)
    assert store.states() == dict.fromkeys(names, "mounted")
    command = "cat /etc/motd; test -e /gone || echo; echo more > /etc/motd; cat /etc/motd; md5sum /big"
    for name in names:
        assert store.podman.container(name, "sh", "-c", command) == f"above\nmore\n{MD5}  /big\n"
    [digest] = json.loads(store.podman("image", "inspect", names[0], "--format", "[{{json .Digest}}]"))
    assert digest == skopeo.tags(store.shelf.layout.path)["busy"]
    for name in names:
        store.remove(name)
    assert (store.podman("images", "-q"), store.targets) == ("", [])


def test_an_image_that_is_in_use_is_not_removed(store: Store) -> None:
    name, other = store.shelf.publish("one"), store.shelf.publish("two")
    store.add(name)
    store.add(other)  # the same image: a name
    store.podman.create("kept", name, "cat", "/etc/motd")
    store.remove(other)
    said = store.remove(name, status=1)
    assert "it is in use" in said and "kept" in said
    assert store.states() == {name: "mounted"}
    assert store.podman("start", "-a", "kept") == "above"
    store.podman("rm", "kept")
    # Where podman keeps its containers need not be known: the mounts of those that run tell.
    store.podman.create("runs", name, "sleep", "1000")
    store.podman("start", "runs")
    assert "has a container's files mounted" in store.run("rm", name, status=1)
    store.podman("rm", "-f", "-t", "0", "runs")
    store.remove(name)
    assert store.states() == {}


def test_a_store_comes_back_after_a_boot_without_the_registry(store: Store) -> None:
    names = [store.shelf.publish("tar"), store.shelf.native]
    for name in names:
        store.add(name)
    for name in names:
        store.podman.container(name, "cat", "/etc/motd")
    store.reboot()
    assert store.states() == dict.fromkeys(names, "unmounted")
    for name in names:  # an error, and not an empty container
        assert store.podman.run("create", "--name", "no", name).returncode != 0
    store.shelf.registry.stop()
    try:
        store.run("sync")
    finally:
        store.shelf.registry.start()
    assert store.states() == dict.fromkeys(names, "mounted")
    for name in names:
        assert store.podman.container(name, "cat", "/etc/motd") == "above"


def test_a_list_is_what_the_store_has_after_sync(store: Store, tmp_path: Path) -> None:
    one, two, three = store.shelf.publish("one"), store.shelf.native, f"{store.shelf.registry.host}/store/busy:missing"
    wanted = tmp_path / "list"
    options = f"oci.cache={store.shelf.cache}"
    wanted.write_text(f"# ours\n{one} {options}\n\n{two} {options} # natively\n")
    store.run("sync", wanted)
    assert store.states() == dict.fromkeys((one, two), "mounted")
    wanted.write_text(f"{three}\n{two} {options}\n")
    said = store.run("sync", wanted, status=32)
    assert three in said and "1 of the images could not be mounted" in said
    assert store.states() == {two: "mounted"}
    wanted.write_text("a b c\n")
    assert f"{wanted}:1: a line is IMAGE, or IMAGE OPTIONS" in store.run("sync", wanted, status=1)


def test_a_tag_that_has_moved_is_the_newer_image(store: Store) -> None:
    name = store.shelf.publish("latest")
    before = store.add(name)
    store.podman.create("kept", name, "cat", "/etc/motd")
    store.shelf.publish("latest", busy_image(store.shelf.layout, "newer", motd=b"newer"))
    assert store.run("add", "--graph-root", store.podman.root, "-o", f"oci.cache={store.shelf.cache}", name)
    assert store.podman.container(name, "cat", "/etc/motd") == "newer"
    assert store.podman("start", "-a", "kept") == "above"
    assert "in use" in store.remove(before[:12], status=1)
    store.podman("rm", "kept")
    store.remove(before[:12])
    assert store.states() == {name: "mounted"}


def test_a_pulled_image_gets_no_layer_of_the_store(store: Store) -> None:
    """Podman puts the layers that it has under what it pulls, by their digests, and those of the store hold others."""
    store.add(store.shelf.publish("stored"))
    pulled = store.shelf.publish("pulled", busy_image(store.shelf.layout, "other", motd=b"pulled"))
    store.podman("pull", "-q", "--tls-verify=false", pulled)
    said = store.podman.container(pulled, "sh", "-c", "cat /etc/motd; test -e /gone || md5sum /big")
    assert said == f"pulled{MD5}  /big\n"


def test_many_at_once_beside_podman(store: Store) -> None:
    names = [store.shelf.publish(f"{number}") for number in range(2)] + [store.shelf.native]
    store.add(names[0])
    ended = threading.Event()
    failures: list[str] = []

    def look() -> None:
        while not ended.is_set():
            done = store.podman.run("images", "--format", "json")
            if done.returncode and "image not known" not in done.stderr:  # removed after podman has listed it
                failures.append(done.stderr)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        adders = [threading.Thread(target=store.add, args=(name,)) for name in names * 2]
        for adder in adders:
            adder.start()
        for adder in adders:
            adder.join()
        assert store.states() == dict.fromkeys(names, "mounted")
        removers = [threading.Thread(target=store.remove, args=(name,)) for name in names]
        for remover in removers:
            remover.start()
        for remover in removers:
            remover.join()
    finally:
        ended.set()
        looker.join()
    assert (store.states(), store.targets, failures) == ({}, [], [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "oci.username=me,oci.password=hush", "quay.io/a/b"], "a password is not kept for the next mount"),
        (["-o", "oci=0", "quay.io/a/b"], "it is the whole image"),
        (["oci:nowhere"], "podman needs a name for it: --name NAME"),
        (["--name", "x:1", "a", "b"], "--name is for one image"),
        (["--name", "UPPER", "quay.io/a/b"], "'UPPER'"),
        (["-t", "erofs.local", "quay.io/a/b"], "erofs.local is for files"),
    ],
)
def test_what_cannot_be_stored_is_said_at_once(scene: Scene, arguments: list[str], said: str) -> None:
    done = scene.run("store", "add", "--dir", scene.directory / "store", *arguments)
    assert (done.status, done.out) == (1, "") and said in done.err and "hush" not in done.err
    assert not (scene.directory / "store").exists()
