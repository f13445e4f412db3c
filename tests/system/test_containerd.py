"""containerd with pyerofs as its snapshotter: by ctr, and by CRI as kubelet does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from pyerofs.grpc.status import RpcError
from tests.support.containerdstage import ContainerdStage
from tests.support.cri import Cri
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Done, Scene, until
from tests.support.shelf import DIGEST, SLEEP, Shelf, fill_shelf, read


@pytest.fixture(scope="module")
def shelf(registry: LoggingRegistry, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return fill_shelf(registry, tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def stage(
    registry: LoggingRegistry, shelf: Shelf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ContainerdStage]:
    with ContainerdStage(tmp_path_factory.mktemp("stage"), registry.host, shelf.pause) as stage:
        yield stage


@pytest.fixture
def cri(stage: ContainerdStage) -> Iterator[Cri]:
    """With nothing of earlier tests, and nothing left of this one."""
    with Cri(stage.address) as cri:
        yield cri
        cri.clear()
        stage.collected()


def run_when_back(cri: Cri, pod: str, image: str) -> str:
    """Start a container once containerd has found the new snapshotter: it tries again every second or so."""
    found: list[str] = []

    def start() -> bool:
        try:
            found.append(cri.run(pod, "again", image, *SLEEP))
        except RpcError as error:
            assert "unavailable" in str(error) or "connect" in str(error)
        return bool(found)

    until(start, "that containerd has found the snapshotter")
    return found[0]


def layers_asked_for(registry: LoggingRegistry, shelf: Shelf, before: int) -> list[str]:
    return [asked for asked in registry.requests()[before:] if any(digest in asked for digest in shelf.tar)]


def test_a_container_runs_lazily_and_leaves_nothing(
    stage: ContainerdStage, cri: Cri, shelf: Shelf, registry: LoggingRegistry
) -> None:
    """By the EROFS image in its index: containerd fetches no layer of it. Two at once share one worker."""
    before = len(registry.requests())
    cri.pull(shelf.dual)
    pod = cri.run_pod("one")
    first = cri.run(pod, "a", shelf.dual, *SLEEP)
    second = cri.run(pod, "b", shelf.dual, *SLEEP)
    assert layers_asked_for(registry, shelf, before) == []
    ran = cri.exec(first, "/bin/sh", "-c", "cat /data/top; touch /data/mine; ls /data")
    assert (ran.status, ran.out, ran.err) == (0, "toplarge\nmine\nread\ntop\n", "")
    assert cri.exec(second, "/bin/ls", "/data").out == "large\nread\ntop\n"
    assert read(cri, first) == read(cri, second) == DIGEST
    assert len(stage.workers()) == 1
    assert f"{shelf.dual}: lazy, from sha256:" in stage.log()


def test_layers_of_erofs_are_mounted(stage: ContainerdStage, cri: Cri, shelf: Shelf) -> None:
    cri.pull(shelf.native)
    container = cri.run(cri.run_pod("native"), "c", shelf.native, *SLEEP)
    assert read(cri, container) == DIGEST
    assert f"{shelf.native}: lazy, from sha256:" in stage.log()


def test_an_ordinary_image_stands_on_the_layers_of_a_lazy_one(
    stage: ContainerdStage, cri: Cri, shelf: Shelf, registry: LoggingRegistry
) -> None:
    """It shares two layers, which containerd takes for unpacked; so it gets them from the EROFS image."""
    cri.pull(shelf.dual)
    before = len(registry.requests())
    cri.pull(shelf.child)
    assert layers_asked_for(registry, shelf, before) == []
    pod = cri.run_pod("child")
    container = cri.run(pod, "c", shelf.child, *SLEEP)
    assert read(cri, container) == DIGEST
    assert cri.exec(container, "/bin/ls", "/data").out == "child\nlarge\nread\n"
    assert read(cri, cri.run(pod, "d", shelf.dual, *SLEEP)) == DIGEST
    cri.remove_image(shelf.dual)  # whose layers stay for the other
    assert read(cri, container) == DIGEST


def test_an_ordinary_image_is_unpacked(stage: ContainerdStage, cri: Cri, shelf: Shelf) -> None:
    """So that pyerofs can be a node's only snapshotter."""
    cri.pull(shelf.child)
    container = cri.run(cri.run_pod("ordinary"), "c", shelf.child, *SLEEP)
    assert cri.exec(container, "/bin/ls", "/data").out == "child\nlarge\nread\n"
    assert f"{shelf.child}: ordinary: it has no index" in stage.log()


def test_ctr_runs_an_image_that_it_has_fetched(stage: ContainerdStage, cri: Cri, shelf: Shelf) -> None:
    """`ctr images pull` of 1.6 fetches all layers, whatever the snapshotter."""
    stage.ctr("images", "pull", "--plain-http", "--snapshotter", "pyerofs", shelf.child)
    ran = stage.ctr("run", "--rm", "--snapshotter", "pyerofs", shelf.child, "t1", "/bin/cat", "/data/child")
    assert ran == "child"
    stage.ctr("images", "rm", "--sync", shelf.child)


def pull(scene: Scene, stage: ContainerdStage, image: str, *more: str) -> Done:
    return scene.run("pull", "-o", "oci.insecure", "--containerd", stage.address, *more, image)


def test_pull_gives_containerd_an_image_without_its_layers(
    stage: ContainerdStage, cri: Cri, scene: Scene, shelf: Shelf, registry: LoggingRegistry
) -> None:
    """For ctr, which fetches all layers by itself; of layer types that no containerd takes too. It is kept until it is
    removed, and then nothing is left.
    """
    for image in (shelf.dual, shelf.canonical):
        done = pull(scene, stage, image)
        assert (done.status, done.err) == (0, f"pyerofs: {image}: 3 layers, none of them fetched\n")
        assert image in stage.ctr("images", "ls", "-q")
        ran = stage.ctr("run", "--rm", "--snapshotter", "pyerofs", image, "t1", "/bin/md5sum", "/data/read")
        assert ran.split()[0] == DIGEST
        again = pull(scene, stage, image)
        assert again == done
    stage.ctr("content", "prune", "references")  # which collects what nothing keeps
    assert stage.ctr("run", "--rm", "--snapshotter", "pyerofs", shelf.dual, "t2", "/bin/cat", "/data/top") == "top"
    stage.ctr("images", "rm", "--sync", shelf.dual, shelf.canonical)


def test_pull_gives_kubelet_s_containerd_an_image(stage: ContainerdStage, cri: Cri, scene: Scene, shelf: Shelf) -> None:
    done = pull(scene, stage, shelf.canonical, "-n", "k8s.io")
    assert done.status == 0, done.err
    until(lambda: shelf.canonical in cri.images(), "that CRI has seen it")
    assert read(cri, cri.run(cri.run_pod("pulled"), "c", shelf.canonical, *SLEEP)) == DIGEST


def test_pull_of_what_cannot_be_lazy_is_refused_and_leaves_nothing(
    stage: ContainerdStage, cri: Cri, scene: Scene, shelf: Shelf
) -> None:
    done = pull(scene, stage, shelf.child)
    assert done.status == 32
    assert "layer 0 cannot be mounted lazily (the snapshotter's log says why)" in done.error
    assert shelf.child not in stage.ctr("images", "ls", "-q")
    assert pull(scene, stage, shelf.child, "--snapshotter", "nobody").status == 32
    assert "cannot connect to" in scene.run("pull", "--containerd", "/nowhere", shelf.child, "-o", "oci.insecure").error


def test_check_finds_everything(stage: ContainerdStage, cri: Cri, scene: Scene) -> None:
    """And what is missing, where there is no containerd."""
    where = ("--root", stage.root / "snapshotter", "--address", stage.root / "s.sock")
    done = scene.run("containerd", "check", *where, "--containerd", stage.address)
    assert (done.status, done.err) == (0, ""), done.out
    assert "ok       containerd has the snapshotter `pyerofs`\n" in done.out
    done = scene.run("containerd", "check", *where, "--containerd", "/nowhere")
    assert done.error == "containerd cannot use pyerofs yet: see the lines that begin with `missing`"
    assert "missing  containerd does not answer: cannot connect to /nowhere: No such file or directory\n" in done.out


def test_everything_goes_on_without_the_snapshotter(stage: ContainerdStage, cri: Cri, shelf: Shelf) -> None:
    """Killed: containers read on, new ones fail; once it is back, containerd goes on by itself."""
    cri.pull(shelf.dual)
    pod = cri.run_pod("killed")
    container = cri.run(pod, "a", shelf.dual, *SLEEP)
    before = stage.workers()
    stage.kill(stage.snapshotter)
    assert read(cri, container) == DIGEST
    with pytest.raises(RpcError):
        cri.create(pod, "b", shelf.dual, *SLEEP)
    stage.start_snapshotter()
    assert read(cri, run_when_back(cri, pod, shelf.dual)) == DIGEST
    assert stage.workers() == before


def test_a_killed_worker_is_replaced_for_the_next_container(stage: ContainerdStage, cri: Cri, shelf: Shelf) -> None:
    cri.pull(shelf.dual)
    pod = cri.run_pod("worker")
    cri.run(pod, "a", shelf.dual, *SLEEP)
    [worker] = stage.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: worker not in stage.workers(), "that the worker has ended")
    assert read(cri, cri.run(pod, "b", shelf.dual, *SLEEP)) == DIGEST


def test_containers_outlive_containerd(stage: ContainerdStage, cri: Cri, shelf: Shelf) -> None:
    cri.pull(shelf.dual)
    container = cri.run(cri.run_pod("containerd"), "a", shelf.dual, *SLEEP)
    stage.kill(stage.containerd)
    stage.start_containerd()
    cri.reconnect()
    assert read(cri, container) == DIGEST


def test_a_start_needs_no_registry_for_what_is_cached(
    stage: ContainerdStage, cri: Cri, shelf: Shelf, registry: LoggingRegistry
) -> None:
    """After the mounts have gone, as after a reboot: all comes from the state and the cache."""
    cri.pull(shelf.dual)
    pod = cri.run_pod("offline")
    first = cri.run(pod, "a", shelf.dual, *SLEEP)
    assert read(cri, first) == DIGEST
    cri.remove(first)
    stage.end(stage.snapshotter)
    for target in stage.mounts():
        subprocess.run(["umount", target], check=True)
    until(lambda: not stage.workers(), "that the workers have ended")
    before = len(registry.requests("/v2/c/"))
    stage.start_snapshotter()
    assert read(cri, run_when_back(cri, pod, shelf.dual)) == DIGEST
    assert registry.requests("/v2/c/")[before:] == []


def test_an_image_that_no_container_needs_is_unmounted(stage: ContainerdStage, cri: Cri, shelf: Shelf) -> None:
    pod = cri.run_pod("idle")
    stage.end(stage.snapshotter)
    stage.start_snapshotter("--idle", "0.2")
    cri.remove(run_when_back(cri, pod, shelf.pause))
    cri.pull(shelf.dual)
    until(lambda: "unmounted, since no container has needed it" in stage.log(), "that it is unmounted")
    until(lambda: not stage.workers(), "that its worker has ended")
    assert read(cri, cri.run(pod, "a", shelf.dual, *SLEEP)) == DIGEST
