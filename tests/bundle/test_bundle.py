"""Bundles under real runc, and an image's mount as the root for other ways to start what is in it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.busyimage import busy_image
from tests.support.needs import need
from tests.support.ordinary import Layout
from tests.support.podman import Podman
from tests.support.scene import Scene


class Bundles:
    """An image whose user, directory and entrypoint are its own, and a runc that keeps its state in the scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.image = busy_image(
            Layout(scene.directory / "layout"),
            "app",
            User="web",
            WorkingDir="/srv",
            Entrypoint=["sh", "-c"],
            Cmd=['id; pwd; echo "$GREETING"; cat /etc/motd'],
            Env=["PATH=/bin", "GREETING=hello world"],
            Labels={"who": "we"},
            StopSignal="SIGQUIT",
        )
        self.directory = scene.directory / "bundle"

    def make(self, *arguments: str, before: tuple[str, ...] = ()) -> str:
        options = (*before, "-o", f"oci.cache={self.scene.cache}", self.image, str(self.directory))
        done = self.scene.run("bundle", *options, *arguments)
        assert done.status == 0, done.err
        return done.err

    def runc(self) -> subprocess.CompletedProcess[str]:
        command = [need("runc", "runc"), "--root", str(self.scene.directory / "runc"), "run", "-b", str(self.directory)]
        return subprocess.run(
            [*command, f"c-{self.scene.directory.name}"], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def remove(self) -> None:
        done = self.scene.run("bundle", "--rm", self.directory)
        assert done.status == 0, done.err
        assert not self.directory.exists()


@pytest.fixture
def bundles(scene: Scene, nbdfuse: None) -> Iterator[Bundles]:
    yield Bundles(scene)
    scene.nothing_left()


def test_runc_starts_what_the_image_says(bundles: Bundles) -> None:
    bundles.make()
    done = bundles.runc()
    groups = "uid=1234(web) gid=1235(web) groups=99(extra)"
    assert (done.returncode, done.stdout) == (0, f"{groups}\n/srv\nhello world\nabove"), done.stderr
    spec = json.loads((bundles.directory / "config.json").read_text())
    assert spec["annotations"]["who"] == "we"
    assert spec["annotations"]["org.opencontainers.image.stopSignal"] == "SIGQUIT"
    bundles.remove()


def test_a_container_changes_its_bundle_and_not_the_image(bundles: Bundles) -> None:
    bundles.make("touch made; cat made && rm /big; echo $?")
    assert bundles.runc().stdout == "1\n"  # the user may not
    assert (bundles.directory / "upper/srv/made").stat().st_uid == 1234
    bundles.remove()
    bundles.make("touch made; test -e made; echo $?", before=("--read-only",))
    assert bundles.runc().stdout == "1\n"
    bundles.remove()


def test_a_bundle_that_cannot_be_made_leaves_nothing(bundles: Bundles) -> None:
    run, where = bundles.scene.run, bundles.directory
    assert run("bundle", "oci:nowhere:x", where).status != 0
    assert not where.exists()
    image = busy_image(Layout(bundles.scene.directory / "bad"), "bad", User="nobody")
    done = run("bundle", "-o", f"oci.cache={bundles.scene.cache}", image, where)
    assert done.status == 32 and "'nobody' is not in its /etc/passwd" in done.err
    assert not where.exists()
    where.mkdir()
    (where / "mine").touch()
    for arguments in ((bundles.image, where), ("--rm", where)):
        assert run("bundle", *arguments).status == 1
    assert [path.name for path in where.iterdir()] == ["mine"]


def test_podman_starts_a_mount(bundles: Bundles) -> None:
    """docs/podman.md."""
    bundles.scene.mount_image(bundles.image)
    podman = Podman()
    try:
        said = podman.container("--rootfs", f"{bundles.scene.mnt}:O", "/bin/sh", "-c", "echo x > /x; cat /etc/motd /x")
        assert said == "abovex\n"
    finally:
        podman.close()
    assert not (bundles.scene.mnt / "x").exists()
    assert bundles.scene.run("umount", bundles.scene.mnt).status == 0


def test_bubblewrap_and_nspawn_start_a_mount(bundles: Bundles) -> None:
    """docs/podman.md."""
    mnt = bundles.scene.mnt
    bundles.scene.mount_image(bundles.image)
    bubblewrap = [need("bwrap", "bubblewrap"), "--ro-bind", str(mnt), "/", "--unshare-pid", "--chdir", "/srv"]
    done = subprocess.run([*bubblewrap, "/bin/sh", "-c", "pwd; cat /etc/motd"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "/srv\nabove"), done.stderr
    nspawn = [need("systemd-nspawn", "systemd-container"), "-q", "--register=no", "--keep-unit", "--volatile=overlay"]
    done = subprocess.run([*nspawn, "-D", mnt, "/bin/cat", "/etc/motd"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.replace("\r", "")) == (0, "above"), done.stderr
    assert bundles.scene.run("umount", mnt).status == 0
